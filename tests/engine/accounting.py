"""Damaged input through the engine's own way, and whether each row of it is accounted for."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.decoding.decode import decode
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import EmbeddedShard, Options, embed_shards
from boring_assets.engine.samples import Failure, Shard
from boring_assets.output.files import write_table
from boring_assets.output.schema import embeddings_table, failures_table
from boring_assets.storage.root import Root
from tests.engine.kinds import shard_at, write_tar
from tests.engine.mutations import mutated_files, mutated_images, whole_rows

LAYOUTS = ("column", "tar", "folder")


@dataclass
class Account:
    """What became of some inputs.

    Attributes:
        inputs: How many there were: images, or files.
        embedded: Images with an embedding.
        reasons: Failures by reason; a file that cannot be read at all is a `shard_error`.
        slowest: Seconds of one core that the slowest image took to decode; 0 for files.
        slowest_kind: What kind that was.
        wrong: What is not accounted for, in words.
    """

    inputs: int = 0
    embedded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_kind: str = ""
    wrong: list[str] = field(default_factory=list)


def account_for_images(count: int, seed: int, folder: Path, encoder: Encoder, each: int = 250) -> Account:
    """Embeds damaged images, in shards of each layout, and compares each row with its own decoding.

    Args:
        count: How many images.
        seed: Decides the damage.
        folder: An empty folder for the shards.
        encoder: The model.
        each: Images in one shard.

    Returns:
        The account.
    """
    images = list(mutated_images(count, seed))
    account = Account(inputs=count)
    expected = []
    for kind, data in images:
        before = time.thread_time()
        expected.append(decode(data, encoder.model.preprocess, Limits()))
        spent = time.thread_time() - before
        if spent > account.slowest:
            account.slowest, account.slowest_kind = spent, kind
    shards = []
    for number, start in enumerate(range(0, count, each)):
        data = [data for _, data in images[start : start + each]]
        shards.append(_image_shard(folder / f"{number:05}.parquet", data, LAYOUTS[number % len(LAYOUTS)]))
    answers = _embed(shards, encoder, folder, account)
    for number, start in enumerate(range(0, count, each)):
        answer = answers.get(f"{number:05}")
        if answer is None:
            account.wrong.append(f"shard {number} of images is not embedded")
            continue
        done = set(answer.embedded.tolist())
        for row, wanted in enumerate(expected[start : start + each]):
            got = answer.failures.get(row) or row in done
            if isinstance(wanted, Failure) != isinstance(got, Failure):
                account.wrong.append(f"image {start + row} ({images[start + row][0]}): {wanted} became {got}")
    return account


def account_for_files(count: int, seed: int, folder: Path, encoder: Encoder) -> Account:
    """Embeds damaged parquet files and tars; each must be answered once, as a whole or row by row.

    Args:
        count: How many files.
        seed: Decides the damage.
        folder: An empty folder for the shards.
        encoder: The model.

    Returns:
        The account.
    """
    account = Account(inputs=count)
    shards = []
    for number, (kind, data) in enumerate(mutated_files(count, seed)):
        path = folder / f"{number:05}.parquet"
        if kind.startswith("tar"):
            pq.write_table(whole_rows(), path)
            path.with_suffix(".tar").write_bytes(data)
        else:
            path.write_bytes(data)
        shards.append(shard_at(path))
    _embed(shards, encoder, folder, account)
    return account


def _image_shard(path: Path, images: list[bytes], layout: str) -> Shard:
    keys = [f"{row:09}" for row in range(len(images))]
    columns: dict[str, object] = {"key": keys, "status": ["success"] * len(images)}
    if layout == "column":
        columns["jpg"] = images
    elif layout == "tar":
        members = ((f"{key}.jpg", data) for key, data in zip(keys, images, strict=True))
        write_tar(path.with_suffix(".tar"), members)
    else:
        path.with_suffix("").mkdir()
        for key, data in zip(keys, images, strict=True):
            (path.with_suffix("") / f"{key}.jpg").write_bytes(data)
    pq.write_table(pa.table(columns), path)
    return shard_at(path)


def _embed(
    shards: Iterable[Shard], encoder: Encoder, folder: Path, account: Account
) -> dict[str, EmbeddedShard]:
    """The shards' answers by key, each committed as the product does it."""
    shards = list(shards)
    answers: dict[str, EmbeddedShard] = {}
    answered: Counter[str] = Counter()
    root = Root(str(folder / "out"), LocalFileSystem(), str(folder / "out"))
    for answer in embed_shards(shards, encoder, Options()):
        answered[answer.shard.key] += 1
        if not isinstance(answer, EmbeddedShard):
            account.reasons["shard_error"] += 1
            continue
        answers[answer.shard.key] = answer
        account.embedded += len(answer.embedded)
        account.reasons.update(failure.reason.value for failure in answer.failures.values())
        rows = sorted([*answer.embedded.tolist(), *answer.failures])
        if rows != list(range(answer.rows.num_rows)):
            account.wrong.append(f"{answer.shard.key}: {answer.rows.num_rows} rows, answered are {rows}")
        try:
            write_table(root, f"e/{answer.shard.key}.parquet", embeddings_table(answer, "float32", {}))
            write_table(root, f"f/{answer.shard.key}.parquet", failures_table(answer))
        except Exception as error:
            account.wrong.append(
                f"{answer.shard.key} is not committed: {type(error).__name__}: {error}"[:500]
            )
    for shard in shards:
        if answered[shard.key] != 1:
            account.wrong.append(f"{shard.key} is answered {answered[shard.key]} times")
    return answers
