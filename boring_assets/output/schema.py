"""The output contract: the columns of an embeddings file and of a failures file."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.secrets import without_secrets

META_PREFIX = "meta_"
ROW = "row"
"""The column with the row of the input shard of an embedding or a failure."""
METADATA_KEY = b"boring_assets"
FAILURES_DIGEST = "failures_sha256"
FAILURES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("url", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


def embeddings_table(result: EmbeddedShard, dtype: str, facts: Mapping[str, object]) -> pa.Table:
    """Builds the rows of a shard's embeddings file.

    Args:
        result: The finished shard.
        dtype: `float32` or `float16`.
        facts: How the shard was embedded; they go into the file's metadata.

    Returns:
        `url`, `key`, `caption` (string), `embedding` (fixed_size_list<dtype>[dim]), `row` (int64, the row of
        the input shard, from 0), and every other input column as `meta_{name}` with its type; input order.
    """
    rows = result.rows.take(pa.array(result.embedded)) if result.rows.num_columns else None
    names, arrays = [], []
    for name in ("url", "key", "caption"):
        source = result.columns.get(name)
        column = (
            rows[source].cast(pa.string()) if source and rows else pa.nulls(len(result.embedded), pa.string())
        )
        names.append(name)
        arrays.append(column)
    vectors = result.embeddings.astype(dtype, copy=False)
    names.append("embedding")
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]))
    names.append(ROW)
    arrays.append(pa.array(result.embedded, pa.int64()))
    used = set(result.columns.values())
    for name in result.rows.column_names:
        if name not in used and rows is not None:
            names.append(META_PREFIX + name)
            arrays.append(rows[name])
    table = pa.table(arrays, names=names)
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(dict(facts)).encode()})


def failures_table(result: EmbeddedShard) -> pa.Table:
    """Builds the rows of a shard's failures file, see `FAILURES_SCHEMA`."""
    rows = list(result.failures)
    picked = result.rows.take(pa.array(rows, pa.int64())) if result.rows.num_columns else None
    columns: dict[str, object] = {"row": rows}
    for name in ("key", "url"):
        source = result.columns.get(name)
        columns[name] = picked[source].cast(pa.string()) if source and picked else [None] * len(rows)
    columns["reason"] = [failure.reason.value for failure in result.failures.values()]
    columns["detail"] = [without_secrets(failure.detail) for failure in result.failures.values()]
    return pa.table(columns, schema=FAILURES_SCHEMA)


def input_rows(embedded: pa.Table, failed: pa.Table | None, facts: Mapping[str, Any]) -> pa.Array | None:
    """Returns the row of the input shard of each embedding of a partition.

    Args:
        embedded: The embeddings file's rows. Files of earlier versions have no column `row`.
        failed: The failures file's rows, used for a file without that column; None where it is missing.
        facts: The embeddings file's metadata.

    Returns:
        int64 [n]; None where the failures that a file without `row` needs are missing or not its own.
    """
    if ROW in embedded.column_names:
        return embedded[ROW].combine_chunks()
    every = np.arange(int(facts.get("rows") or embedded.num_rows))
    if failed is not None:
        every = np.setdiff1d(every, failed[ROW].to_numpy())
    return pa.array(every, pa.int64()) if len(every) == embedded.num_rows else None


def failed_by_reason(result: EmbeddedShard) -> dict[str, int]:
    """Counts the failed rows of each reason, most first."""
    reasons, counts = np.unique([f.reason.value for f in result.failures.values()], return_counts=True)
    return dict(sorted(zip(reasons.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]))


def row_hashes(keys: pa.Array | pa.ChunkedArray, urls: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Hashes key and URL of each row that has either.

    Args:
        keys: The rows' keys, strings.
        urls: Their URLs, strings.

    Returns:
        uint64 [at most n], comparable within one process.
    """
    import polars as pl

    frame = pl.DataFrame({"key": pl.Series(keys, dtype=pl.String), "url": pl.Series(urls, dtype=pl.String)})
    named = frame.filter(pl.col("key").is_not_null() | pl.col("url").is_not_null())
    return named.hash_rows().to_numpy()


def count_repeated(hashes: Iterable[np.ndarray]) -> int:
    """Counts the rows that repeat an earlier one, by their `row_hashes`."""
    parts = list(hashes)
    every = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    return len(every) - len(np.unique(every))


def repeated_rows(result: EmbeddedShard) -> int:
    """Counts the rows of a shard that have the key and URL of an earlier one."""
    none = pa.nulls(result.rows.num_rows, pa.string())
    key, url = (
        result.rows[result.columns[name]].cast(pa.string()) if name in result.columns else none
        for name in ("key", "url")
    )
    return count_repeated([row_hashes(key, url)])


def digest(failures: bytes | pa.Buffer) -> str:
    """Returns the digest that an embeddings file stores of its failures file."""
    return hashlib.sha256(failures).hexdigest()


def belongs(failures: bytes | pa.Buffer, facts: Mapping[str, object]) -> bool:
    """Whether a failures file and an embeddings file were written together.

    Args:
        failures: The failures file's bytes.
        facts: Metadata of the embeddings file; files of older versions do not name their failures file.
    """
    return facts.get(FAILURES_DIGEST) in (None, digest(failures))


def read_facts(metadata: Mapping[bytes, bytes] | None) -> dict[str, object]:
    """Returns the facts in an embeddings file's metadata; empty if this project did not write it."""
    raw = (metadata or {}).get(METADATA_KEY)
    facts = json.loads(raw) if raw else {}
    return facts if isinstance(facts, dict) else {}
