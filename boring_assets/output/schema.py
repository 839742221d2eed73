"""The output contract: what stands in an embeddings file and in a failures file."""

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.secrets import without_secrets

META_PREFIX = "meta_"
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
    """The embedded rows of a shard as its output file holds them.

    Args:
        result: The finished shard.
        dtype: `float32` or `float16`.
        facts: What the file's metadata says of how it was made; see `file_facts`.

    Returns:
        `url`, `key`, `caption` (string), `embedding` (fixed_size_list<dtype>[dim]), and every other input
        column as `meta_{name}` with its type; input order.
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
    used = set(result.columns.values())
    for name in result.rows.column_names:
        if name not in used and rows is not None:
            names.append(META_PREFIX + name)
            arrays.append(rows[name])
    table = pa.table(arrays, names=names)
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(dict(facts)).encode()})


def failures_table(result: EmbeddedShard) -> pa.Table:
    """The failed rows of a shard: `row` (its number in the input), `key`, `url`, `reason`, `detail`."""
    rows = list(result.failures)
    picked = result.rows.take(pa.array(rows, pa.int64())) if result.rows.num_columns else None
    columns: dict[str, object] = {"row": rows}
    for name in ("key", "url"):
        source = result.columns.get(name)
        columns[name] = picked[source].cast(pa.string()) if source and picked else [None] * len(rows)
    columns["reason"] = [failure.reason.value for failure in result.failures.values()]
    columns["detail"] = [without_secrets(failure.detail) for failure in result.failures.values()]
    return pa.table(columns, schema=FAILURES_SCHEMA)


def failed_by_reason(result: EmbeddedShard) -> dict[str, int]:
    """How many rows failed for each reason that occurs, most first."""
    reasons, counts = np.unique([f.reason.value for f in result.failures.values()], return_counts=True)
    return dict(sorted(zip(reasons.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]))


def row_hashes(keys: pa.Array | pa.ChunkedArray, urls: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """What identifies rows: a hash of key and URL for each row that has either.

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
    """How many rows are the same as an earlier one, by their `row_hashes`."""
    parts = list(hashes)
    every = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    return len(every) - len(np.unique(every))


def repeated_rows(result: EmbeddedShard) -> int:
    """How many rows of a shard have the key and URL of an earlier one."""
    none = pa.nulls(result.rows.num_rows, pa.string())
    key, url = (
        result.rows[result.columns[name]].cast(pa.string()) if name in result.columns else none
        for name in ("key", "url")
    )
    return count_repeated([row_hashes(key, url)])


def digest(failures: bytes | pa.Buffer) -> str:
    """What the embeddings file says of the failures file that was written with it."""
    return hashlib.sha256(failures).hexdigest()


def belongs(failures: bytes | pa.Buffer, facts: Mapping[str, object]) -> bool:
    """Whether a failures file and an embeddings file were written together.

    Args:
        failures: The failures file's bytes.
        facts: What the embeddings file says of itself; older ones do not say which failures are theirs.
    """
    return facts.get(FAILURES_DIGEST) in (None, digest(failures))


def read_facts(metadata: Mapping[bytes, bytes] | None) -> dict[str, object]:
    """The facts that an embeddings file's metadata holds; empty where it is none of ours."""
    raw = (metadata or {}).get(METADATA_KEY)
    facts = json.loads(raw) if raw else {}
    return facts if isinstance(facts, dict) else {}
