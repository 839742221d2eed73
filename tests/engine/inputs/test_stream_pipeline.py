"""Tars and TFRecord files without a parquet through the whole engine: their rows are known at their end."""

import os
from pathlib import Path

import numpy as np
import pytest

from boring_assets.engine import batcher
from boring_assets.engine.batcher import Job
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.lookup import Lookup
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import FailedShard, Options, embed_shards
from boring_assets.engine.samples import Failure, Reason, Shard
from tests.engine.inputs.test_streamed import example, framed
from tests.engine.kinds import jpeg, shard_at, write_tar
from tests.engine.shards import assert_same, embedded, make_shard


def tar(folder: Path, name: str, rows: int, first: int = 0) -> Shard:
    """A tar whose texts stand before, beside and after the images; each fifth image is broken."""
    members = [(f"{row}.txt", f"no {row}".encode()) for row in range(0, rows, 2)]
    images = [(f"{row}.jpg", b"<html>" if row % 5 == 4 else jpeg(first + row)) for row in range(rows)]
    write_tar(folder / f"{name}.tar", [*images[: rows // 2], *members, *images[rows // 2 :]])
    return shard_at(folder / f"{name}.tar")


def tfrecord(folder: Path, name: str, rows: int, first: int = 0) -> Shard:
    records = [
        example(jpg=b"<html>" if row % 5 == 4 else jpeg(first + row), caption=f"no {row}".encode())
        for row in range(rows)
    ]
    (folder / f"{name}.tfrecord").write_bytes(b"".join(map(framed, records)))
    return shard_at(folder / f"{name}.tfrecord")


def test_streams_and_others_share_batches_and_keep_their_rows(encoder: Encoder, tmp_path: Path) -> None:
    shards = [
        tar(tmp_path, "a", 37),
        make_shard(tmp_path, "b", [jpeg(row) for row in range(9)]),
        tfrecord(tmp_path, "c", 23),
        tar(tmp_path, "d", 3),
        tfrecord(tmp_path, "e", 0),
    ]
    whole = make_shard(tmp_path, "all", [jpeg(row) for row in range(37)])
    (wanted,) = embedded(list(embed_shards([whole], encoder)))
    results = sorted(embedded(list(embed_shards(shards, encoder))), key=lambda result: result.shard.key)
    assert [result.shard for result in results] == shards
    assert [result.rows.num_rows for result in results] == [37, 9, 23, 3, 0]
    for result in results:
        pictures = [int(key.rpartition("-")[2]) for key in result.rows["key"].to_pylist()]
        assert_same(result.embeddings, wanted.embeddings[np.array(pictures, np.int64)[result.embedded]])
        assert {failure.reason for failure in result.failures.values()} <= {Reason.DECODE_ERROR}
    # The first half of a tar's images stands before all of its texts.
    assert results[0].rows["key"].to_pylist()[:18] == [str(row) for row in range(18)]
    by_key = dict(
        zip(
            *(results[0].rows[results[0].columns[name]].to_pylist() for name in ("key", "caption")),
            strict=True,
        )
    )
    assert by_key == {str(row): None if row % 2 else f"no {row}" for row in range(37)}
    assert results[2].rows[results[2].columns["caption"]].to_pylist() == [f"no {row}" for row in range(23)]


def test_a_stream_that_ends_early_fails_alone(encoder: Encoder, tmp_path: Path) -> None:
    good = [tar(tmp_path, "good-0", 20), tfrecord(tmp_path, "good-1", 20)]
    bad = [tar(tmp_path, "bad-0", 20), tfrecord(tmp_path, "bad-1", 20)]
    for shard in bad:
        content = Path(shard.path).read_bytes()
        Path(shard.path).write_bytes(content[: len(content) * 2 // 3])
    results = list(embed_shards([bad[0], good[0], bad[1], good[1]], encoder))
    assert {one.shard.key for one in results if isinstance(one, FailedShard)} == {one.key for one in bad}
    kept = embedded([one for one in results if not isinstance(one, FailedShard)])
    assert [one.rows.num_rows for one in kept] == [20, 20]


@pytest.mark.parametrize("make", [tar, tfrecord])
def test_max_rows_counts_the_rows_of_streams(encoder: Encoder, tmp_path: Path, make: object) -> None:
    shards = [make(tmp_path, f"{number}", 10) for number in range(3)]  # type: ignore[operator]
    results = embedded(list(embed_shards(shards, encoder, Options(max_rows=14))))
    assert [(result.rows.num_rows, result.cut) for result in results] == [(10, 0), (4, 6)]


@pytest.mark.parametrize("make", [tar, tfrecord])
def test_streams_obey_the_limits_of_shards(encoder: Encoder, tmp_path: Path, make: object) -> None:
    shard = make(tmp_path, "0", 10)  # type: ignore[operator]

    def embed(**limits: int) -> list:
        return list(embed_shards([shard], encoder, Options(limits=Limits(**limits))))  # type: ignore[arg-type]

    assert embedded(embed(shard_rows=10, shard_bytes=10_000))[0].rows.num_rows == 10
    (failed,) = embed(shard_rows=9)
    assert "10 rows or more; the limit is 9 (BORING_MAX_SHARD_ROWS)" in str(failed.error)
    (failed,) = embed(shard_bytes=30)
    assert "BORING_MAX_SHARD_MB" in str(failed.error)


def test_a_tar_is_read_once(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tar(tmp_path, "0", 30)
    read: list[tuple[int, int]] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *call: read.append(call[1:]) or pread(*call))
    assert len(embedded(list(embed_shards([shard], encoder)))) == 1
    assert sum(size for size, _ in read) == Path(shard.path).stat().st_size


def test_single_images_of_a_tar_are_those_of_its_rows(tmp_path: Path) -> None:
    shard = tar(tmp_path, "0", 30)
    opened = open_shard(shard, Limits(), Fetcher())
    images = dict(opened.images())
    lookup = Lookup(open_shard(shard, Limits(), Fetcher()))
    assert [lookup.keys[key] for key in opened.rows["key"].to_pylist()] == list(range(30))
    assert [lookup.read(row) for row in range(30)] == [images[row] for row in range(30)]
    assert isinstance(lookup.read(30), Failure)


def test_a_shard_larger_than_memory_fails_alone(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [make_shard(tmp_path, name, [jpeg(row) for row in range(5)]) for name in "abc"]

    class WithoutRoom(Job):
        def __init__(self, shard: Shard, expected_rows: int, dim: int, options: Options) -> None:
            if shard.key == "b" and expected_rows:
                raise MemoryError("Unable to allocate 40 GiB")
            super().__init__(shard, expected_rows, dim, options)

    monkeypatch.setattr(batcher, "Job", WithoutRoom)
    results = list(embed_shards(shards, encoder))
    (failed,) = [one for one in results if isinstance(one, FailedShard)]
    assert failed.shard.key == "b"
    assert "Unable to allocate" in str(failed.error)
    kept = embedded([one for one in results if not isinstance(one, FailedShard)])
    assert [one.shard.key for one in kept] == ["a", "c"]
