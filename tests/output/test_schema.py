"""The output contract: names, order and types of the columns, and what became of each row."""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.engine.samples import Failure, Reason
from boring_assets.output.schema import (
    FAILURES_SCHEMA,
    embeddings_table,
    failed_by_reason,
    failures_table,
    read_facts,
)
from tests.engine.kinds import shard_at

DIM = 8
TAGS = pa.list_(pa.struct([("name", pa.string()), ("score", pa.float32())]))
INPUT = pa.table(
    {
        "uid": pa.array([1, 2, 3, 4], pa.uint16()),
        "TEXT": pa.array(["one", None, "three", "été 写真"], pa.large_string()),
        "URL": ["u1", "u2", "u3", None],
        "key": pa.array([10, 20, 30, 40], pa.int64()),
        "status": ["success"] * 4,
        "width": pa.array([None, 1, 2, 3], pa.int32()),
        "taken": pa.array([dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in (1, 2, 3, 4)]),
        "license": pa.array(["cc", "by", None, "cc"]).dictionary_encode(),
        "tags": pa.array([[{"name": "a", "score": 0.5}], [], None, [{"name": "b", "score": None}]], TAGS),
        "box": pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float64(), 2)),
        "hash": pa.array([b"\0\xff"] * 4, pa.binary()),
        "caption_en": pa.array(["x"] * 4, pa.string()),
    }
)
COLUMNS = {"url": "URL", "key": "key", "caption": "TEXT"}


def result_of(rows: pa.Table, columns: dict[str, str], failed: dict[int, Failure]) -> EmbeddedShard:
    embedded = np.array([row for row in range(rows.num_rows) if row not in failed], np.int64)
    vectors = np.random.default_rng(0).normal(size=(len(embedded), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) if len(embedded) else 1
    return EmbeddedShard(
        shard_at("/data/00000.parquet"), rows, columns, embedded, vectors, failed, 1.0, 1000, cut=0
    )


FAILED = {1: Failure(Reason.DECODE_ERROR, "cannot identify"), 3: Failure(Reason.NOT_DOWNLOADED, "404")}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedded_rows_in_the_promised_columns(tmp_path: Path, dtype: str) -> None:
    result = result_of(INPUT, COLUMNS, FAILED)
    table = embeddings_table(result, dtype, {"model": "boring-tiny", "rows": 4})
    rest = [name for name in INPUT.column_names if name not in COLUMNS.values()]
    assert table.column_names == [
        *("url", "key", "caption", "embedding", "row"),
        *(f"meta_{name}" for name in rest),
    ]
    for name in ("url", "key", "caption"):
        assert table.schema.field(name).type == pa.string()
    value = pa.float32() if dtype == "float32" else pa.float16()
    assert table.schema.field("embedding").type == pa.list_(value, DIM)
    for name in rest:
        assert table.schema.field(f"meta_{name}").type == INPUT.schema.field(name).type, name
        assert table[f"meta_{name}"].to_pylist() == INPUT[name].take([0, 2]).to_pylist(), name
    assert table["url"].to_pylist() == ["u1", "u3"]
    assert table["key"].to_pylist() == ["10", "30"]
    assert table["caption"].to_pylist() == ["one", "three"]
    assert table.schema.field("row").type == pa.int64()
    assert table["row"].to_pylist() == [0, 2]
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert np.abs(vectors - result.embeddings).max() < (1e-3 if dtype == "float16" else 1e-9)

    pq.write_table(table, tmp_path / "out.parquet")
    again = pq.read_table(tmp_path / "out.parquet")
    assert again.schema.equals(table.schema)
    assert again.equals(table)
    assert read_facts(pq.read_schema(tmp_path / "out.parquet").metadata) == {
        "model": "boring-tiny",
        "rows": 4,
    }


def test_captions_may_be_null() -> None:
    table = embeddings_table(result_of(INPUT, COLUMNS, {}), "float32", {})
    assert table["caption"].to_pylist() == ["one", None, "three", "été 写真"]
    assert table["url"].to_pylist() == ["u1", "u2", "u3", None]


def test_the_schema_is_the_same_when_nothing_was_embedded() -> None:
    every = {row: Failure(Reason.MISSING_IMAGE, "none") for row in range(4)}
    some = embeddings_table(result_of(INPUT, COLUMNS, FAILED), "float32", {})
    for result in (result_of(INPUT, COLUMNS, every), result_of(INPUT.slice(0, 0), COLUMNS, {})):
        table = embeddings_table(result, "float32", {})
        assert table.num_rows == 0
        assert table.schema.equals(some.schema)


def test_a_shard_of_nothing_but_images_has_the_promised_columns_too() -> None:
    rows = INPUT.select([])
    assert rows.num_rows == 4
    result = result_of(rows, {}, FAILED)
    table = embeddings_table(result, "float32", {})
    assert table.column_names == ["url", "key", "caption", "embedding", "row"]
    assert (
        table.select(["url", "key", "caption"]).to_pylist()
        == [{"url": None, "key": None, "caption": None}] * 2
    )
    assert failures_table(result).to_pylist()[1] == {
        "row": 3, "key": None, "url": None, "reason": "not_downloaded", "detail": "404"
    }  # fmt: skip


def test_columns_that_look_like_our_own_are_kept_apart() -> None:
    rows = pa.table({"url": ["u"], "URL": ["v"], "embedding": [[1.0]], "meta_x": [1], "x": [2]})
    table = embeddings_table(result_of(rows, {"url": "url"}, {}), "float32", {})
    assert table.column_names[5:] == ["meta_URL", "meta_embedding", "meta_meta_x", "meta_x"]
    assert table["meta_x"].to_pylist() == [2]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", None]).dictionary_encode(),
        pa.array([b"a", None], pa.binary()),
        pa.array([1.5, None]),
        pa.array([True, None]),
        pa.array([dt.date(2024, 1, 2), None]),
        pa.nulls(2),
    ],
    ids=lambda values: str(values.type),
)
def test_captions_of_any_plain_type_become_text(values: pa.Array) -> None:
    rows = pa.table({"caption": values, "key": ["a", "b"]})
    result = result_of(rows, {"caption": "caption", "key": "key"}, {1: Failure(Reason.DECODE_ERROR, "x")})
    table = embeddings_table(result, "float32", {})
    assert table.schema.field("caption").type == pa.string()
    assert (table["caption"][0].as_py() is None) == (values[0].as_py() is None)
    assert failures_table(result)["key"].to_pylist() == ["b"]


def test_failures_say_which_row_and_why() -> None:
    result = result_of(INPUT, COLUMNS, FAILED)
    table = failures_table(result)
    assert table.schema.equals(FAILURES_SCHEMA)
    assert table.to_pylist() == [
        {"row": 1, "key": "20", "url": "u2", "reason": "decode_error", "detail": "cannot identify"},
        {"row": 3, "key": "40", "url": None, "reason": "not_downloaded", "detail": "404"},
    ]
    none = failures_table(result_of(INPUT, COLUMNS, {}))
    assert none.num_rows == 0
    assert none.schema.equals(FAILURES_SCHEMA)


def test_reasons_are_counted_most_first() -> None:
    reasons = [Reason.DECODE_ERROR, Reason.NOT_DOWNLOADED, Reason.NOT_DOWNLOADED]
    counted = failed_by_reason(result_of(INPUT, COLUMNS, dict(enumerate(map(Failure, reasons)))))
    assert list(counted.items()) == [("not_downloaded", 2), ("decode_error", 1)]
    assert failed_by_reason(result_of(INPUT, COLUMNS, {})) == {}


def test_foreign_files_have_no_facts() -> None:
    assert read_facts(None) == {}
    assert read_facts({b"pandas": b"{}"}) == {}
    assert read_facts({b"boring_assets": json.dumps([1]).encode()}) == {}
