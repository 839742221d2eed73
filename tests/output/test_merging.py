"""A retry merged into a partition, and rows taken out of one, by the files alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.inputs.exclusions import Exclusions
from boring_assets.engine.results import EmbeddedShard
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import ShardError
from boring_assets.output.files import write_table
from boring_assets.output.merging import find_excluded, merge_retried, read_committed, remove_rows
from boring_assets.output.verify import check_files
from partitions.own_files import EMBEDDINGS, FAILURES
from resources.embeddings_io import EmbeddingsIOManager

ROWS, DIM = 10, 8
FACTS = {"model": "m", "pretrained": "", "weights_digest": "0", "precision": "fp32", "dim": DIM,
         "preprocess": {}, "dtype": "float32", "settings": "s"}  # fmt: skip
RETRIED = frozenset({Reason.FETCH_ERROR})
NONE = Exclusions()


def result(failed: dict[int, Reason], only: set[int] | None = None, version: str = "v1") -> EmbeddedShard:
    """What the engine gives for a shard of ten rows; row n has the unit vector n of eight, in turn."""
    wanted = only if only is not None else set(range(ROWS))
    embedded = np.array(sorted(wanted - failed.keys()), np.int64)
    rows = pa.table({"key": [f"k{row}" for row in range(ROWS)], "url": [f"u{row}" for row in range(ROWS)],
                     "sha256": [f"{row:064}" for row in range(ROWS)]})  # fmt: skip
    shard = Shard("00000", "file:///in/00000.parquet", LocalFileSystem(), "/in/00000.parquet", "/in", version)
    return EmbeddedShard(
        shard=replace(shard, only_rows=None if only is None else frozenset(only)),
        rows=rows,
        columns={"key": "key", "url": "url"},
        embedded=embedded,
        embeddings=np.eye(DIM, dtype=np.float32)[embedded % DIM],
        failures={row: Failure(reason, "why") for row, reason in sorted(failed.items())},
        seconds=1.0,
        image_bytes=1,
        cut=0,
    )


@pytest.fixture
def output(tmp_path: Path) -> EmbeddingsIOManager:
    output = EmbeddingsIOManager(output_dir=str(tmp_path))
    failed = {2: Reason.FETCH_ERROR, 5: Reason.DECODE_ERROR, 7: Reason.FETCH_ERROR}
    output.commit(result(failed), FACTS)
    return output


def read(output: EmbeddingsIOManager) -> tuple[list[int], list[int], dict[int, str]]:
    """The embedded rows, which unit vector each has, and the reason of each failed row; all is checked."""
    root = output.root()
    paths = [f"{kind}/00000.parquet" for kind in (EMBEDDINGS, FAILURES)]
    assert check_files(root, *paths).findings == []
    committed = read_committed(root, "00000")
    vectors = np.array(committed.table["embedding"].to_pylist()).argmax(axis=1).tolist()
    return committed.rows.tolist(), vectors, {row: str(one.reason) for row, one in committed.failures.items()}


def retry(output: EmbeddingsIOManager, failed: dict[int, Reason], exclusions: Exclusions = NONE) -> None:
    committed = read_committed(output.root(), "00000")
    only = set(committed.rows_to_retry(RETRIED))
    mine = {row: reason for row, reason in failed.items() if row in only}
    output.commit(merge_retried(result(mine, only), committed, FACTS, exclusions), FACTS)


def test_a_retried_row_takes_its_place_among_the_others(output: EmbeddingsIOManager) -> None:
    assert read_committed(output.root(), "00000", []).rows_to_retry(RETRIED) == {2, 7}
    retry(output, {7: Reason.TOO_LARGE})
    rows = [0, 1, 2, 3, 4, 6, 8, 9]
    assert read(output) == (rows, [row % DIM for row in rows], {5: "decode_error", 7: "too_large"})


def test_rows_that_a_killed_retry_lost_are_retried(output: EmbeddingsIOManager) -> None:
    """It had written the new failures, and not yet the embeddings."""
    failures = read_committed(output.root(), "00000").failed
    write_table(output.root(), f"{FAILURES}/00000.parquet", failures.slice(1, 1))
    assert read_committed(output.root(), "00000").rows_to_retry(RETRIED) == {2, 7}
    retry(output, {})
    assert read(output)[2] == {5: "decode_error"}
    assert read(output)[0] == [row for row in range(ROWS) if row != 5]


def test_an_excluded_row_does_not_stay_embedded(output: EmbeddingsIOManager) -> None:
    retry(output, {}, Exclusions(keys=frozenset({"k0", "k5"})))
    assert read(output)[2] == {0: "excluded", 5: "excluded"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "v2"}, "was embedded from another version"),
        ({"weights_digest": "1"}, "weights_digest 0 instead of 1"),
        ({"keys": "x"}, "has other rows, keys or URLs"),
    ],
)
def test_a_retry_with_other_rows_or_another_model_is_not_merged(
    output: EmbeddingsIOManager, change: dict[str, str], message: str
) -> None:
    mine = result({}, {2, 7}, change.get("version", "v1"))
    if "keys" in change:
        mine = replace(mine, rows=mine.rows.set_column(0, "key", [[f"x{row}" for row in range(ROWS)]]))
    made_by = FACTS | {name: value for name, value in change.items() if name in FACTS}
    with pytest.raises(ShardError, match=message):
        merge_retried(mine, read_committed(output.root(), "00000"), made_by, NONE)


def test_rows_are_taken_out_by_key_url_and_digest(output: EmbeddingsIOManager) -> None:
    exclusions = Exclusions(frozenset({"k0", "k2"}), frozenset({"u3"}), frozenset({f"{9:064}"}))
    found = find_excluded(read_committed(output.root(), "00000"), exclusions)
    assert list(found) == [0, 3, 9], "k2 is not embedded"
    facts = remove_rows(output.root(), "00000", found)
    assert (facts["rows"], facts["embedded"], facts["failed"]) == (ROWS, 4, 6)
    assert facts["failed_by_reason"] == {"excluded": 3, "fetch_error": 2, "decode_error": 1}
    rows, vectors, failures = read(output)
    assert rows == [1, 4, 6, 8]
    assert vectors == [1, 4, 6, 0]
    assert [row for row, reason in failures.items() if reason == "excluded"] == [0, 3, 9]
    failed = read_committed(output.root(), "00000").failed.to_pylist()
    assert failed[0]["key"] == "k0"
    assert failed[0]["url"] == "u0"


def test_a_killed_removal_is_done_again(output: EmbeddingsIOManager) -> None:
    """It had written the new failures, and not yet the embeddings."""
    committed = read_committed(output.root(), "00000")
    found = find_excluded(committed, Exclusions(keys=frozenset({"k0"})))
    both = [*committed.failed.to_pylist(), {"row": 0, "key": "k0", "url": "u0", "reason": "excluded"}]
    write_table(
        output.root(), f"{FAILURES}/00000.parquet", pa.Table.from_pylist(both, committed.failed.schema)
    )
    assert read_committed(output.root(), "00000").rows.tolist() == committed.rows.tolist()
    remove_rows(output.root(), "00000", found)
    assert read(output)[2] == {0: "excluded", 2: "fetch_error", 5: "decode_error", 7: "fetch_error"}


def test_an_output_of_an_earlier_version_is_known_by_its_failures(output: EmbeddingsIOManager) -> None:
    root, path = output.root(), f"{EMBEDDINGS}/00000.parquet"
    write_table(root, path, read_committed(root, "00000").table.drop_columns("row"))
    assert read_committed(root, "00000").rows.tolist() == [0, 1, 3, 4, 6, 8, 9]
    failures = read_committed(root, "00000").failed
    write_table(root, f"{FAILURES}/00000.parquet", failures.slice(1))
    with pytest.raises(ShardError, match="written by different runs"):
        read_committed(root, "00000")
