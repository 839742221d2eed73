"""Measures of each committed partition: its counts, norms and mean, read from its files.

Each file is read once: its measures are kept in the output, by the file's version.
"""

import hashlib
import io
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.samples import NOT_COUNTED
from boring_assets.output.files import file_versions
from boring_assets.output.schema import belongs, read_facts
from boring_assets.secrets import without_secrets
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, FAILURES

_CACHE = ".measures.parquet"
CACHES = ".measures"
"""Folder of the measures of a split dataset, a file for each part."""
_BATCH_ROWS = 8192
_READ_BYTES = 4 * 2**20
_KEEP_AFTER = 2000
# float16's own rounding moves the length of a unit vector by less than a thousandth.
_NORM_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Measures:
    """Measures of one committed partition; numbers are 0 and texts empty where it cannot be read.

    Attributes:
        key: The partition key.
        version: Changes when one of its two files does.
        error: Why it cannot be read; empty where it can.
        rows: Rows of the input shard, by the file's metadata.
        embedded: How many of them are embedded, by the file's metadata.
        failed: How many of them failed, by the file's metadata.
        not_downloaded: How many of those had no image, or are excluded.
        vectors: Rows that the embeddings file has.
        failures: Distinct input rows that the failures file names; -1 where there is no such file.
        dim: Length of the embeddings, by the column's type; 0 where it is no fixed-size list.
        claimed_dim: Their length, by the file's metadata.
        bad_vectors: Embeddings that are null, not finite, or not of length 1.
        largest_group: How many rows share the embedding that most rows share.
        repeated_keys: Rows whose `key` an earlier row has.
        digest: Digest of all embeddings, in order.
        mean: Their mean, as the bytes of float16 [dim]; the bad ones are left out.
        source_version: Version of the shard that it was embedded from.
        settings: The settings that decided the embeddings' numbers.
        weights_digest: Digest of the model's weights.
    """

    key: str
    version: str = ""
    error: str = ""
    rows: int = 0
    embedded: int = 0
    failed: int = 0
    not_downloaded: int = 0
    vectors: int = 0
    failures: int = 0
    dim: int = 0
    claimed_dim: int = 0
    bad_vectors: int = 0
    largest_group: int = 0
    repeated_keys: int = 0
    digest: str = ""
    mean: bytes = field(default=b"", repr=False)
    source_version: str = ""
    settings: str = ""
    weights_digest: str = ""

    def mean_vector(self) -> np.ndarray:
        """The mean of the embeddings, float64 [dim]; empty where there are none."""
        return np.frombuffer(self.mean, np.float16).astype(np.float64)


def measure_all(root: Root, part: str = "", only: Container[str] | None = None) -> list[Measures]:
    """Returns the measures of every committed partition, sorted by key; reads only what has changed.

    Args:
        root: The output.
        part: Name of a part of a split dataset; each part has its own cache.
        only: Its partitions; None is all.

    Raises:
        StorageError: The output cannot be listed, or the measures cannot be written.
    """
    versions = {key: one for key, one in _versions(root).items() if only is None or key in only}
    cache = f"{CACHES}/{part}.parquet" if part else _CACHE
    # Files that could not be read are tried again: it may have been an error of the storage.
    known = {
        one.key: one
        for one in _read_cache(root, cache)
        if versions.get(one.key) == one.version and not one.error
    }
    changed = [key for key in versions if key not in known]
    with ThreadPoolExecutor(2 if isinstance(root.fs, LocalFileSystem) else 8, "measure") as pool:
        # Measuring a large output takes long; a killed run keeps what it has measured.
        for start in range(0, len(changed), _KEEP_AFTER):
            some = changed[start : start + _KEEP_AFTER]
            known |= {one.key: one for one in pool.map(lambda key: measure(root, key, versions[key]), some)}
            _write_cache(root, cache, [known[key] for key in sorted(known)])
    return [known[key] for key in sorted(versions)]


def measure(root: Root, key: str, version: str = "") -> Measures:
    """Measures one committed partition by reading its files; one that cannot be read gets an `error`."""
    try:
        path = f"{root.path}/{EMBEDDINGS}/{key}.parquet"
        with root.fs.open(path, "rb", block_size=_READ_BYTES) as file:
            parquet = pq.ParquetFile(file, buffer_size=_READ_BYTES, page_checksum_verification=True)
            facts = read_facts(parquet.schema_arrow.metadata)
            numbers = _of_facts(facts) | _of_rows(parquet)
        return Measures(key, version, failures=_count_failures(root, key, facts), **numbers)
    except Exception as error:  # of any library; it concerns only this partition
        return Measures(key, version, without_secrets(f"{type(error).__name__}: {error}")[:300])


def _of_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The measures in the file's metadata."""
    reasons = facts.get("failed_by_reason") or {}
    return {
        **{name: int(facts.get(name) or 0) for name in ("rows", "embedded", "failed")},
        **{name: str(facts.get(name) or "") for name in ("source_version", "settings", "weights_digest")},
        "claimed_dim": int(facts.get("dim") or 0),
        "not_downloaded": sum(int(reasons.get(reason, 0)) for reason in NOT_COUNTED),
    }


def _of_rows(parquet: pq.ParquetFile) -> dict[str, Any]:
    """The measures of its rows."""
    kind = parquet.schema_arrow.field("embedding").type
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
    total, bad = np.zeros(dim), 0
    digest = hashlib.sha256()
    hashes: list[np.ndarray] = []
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=["embedding"]) if dim else ():
        column = batch.column(0)
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        digest.update(vectors.tobytes())
        hashes.append(_hash_rows(vectors))
        vectors = vectors.astype(np.float32, copy=False)
        with np.errstate(all="ignore"):  # values that are not finite are counted below
            lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        good = np.abs(lengths - 1) <= _NORM_TOLERANCE
        bad += column.null_count + int(np.count_nonzero(~good))
        total += vectors[good].sum(axis=0, dtype=np.float64)
    vectors_in_all = parquet.metadata.num_rows
    groups = np.unique(np.concatenate(hashes), return_counts=True)[1] if hashes else np.zeros(1, int)
    keys = parquet.read(columns=["key"]).column(0).drop_null()
    mean = (total / max(1, vectors_in_all - bad)).astype(np.float16)
    return {
        "dim": dim,
        "vectors": vectors_in_all,
        "bad_vectors": bad,
        "largest_group": int(groups.max(initial=0)),
        "repeated_keys": len(keys) - len(keys.unique()),
        "digest": digest.hexdigest()[:16],
        "mean": mean.tobytes() if vectors_in_all > bad else b"",
    }


def _hash_rows(vectors: np.ndarray) -> np.ndarray:
    """Returns uint64 [n], a hash of the bits of each row."""
    bits = vectors.view({2: np.uint16, 4: np.uint32}[vectors.dtype.itemsize])
    factors = np.random.default_rng(0).integers(1, 2**63, vectors.shape[1], np.uint64) | np.uint64(1)
    return bits.astype(np.uint64) @ factors


def _count_failures(root: Root, key: str, facts: Mapping[str, Any]) -> int:
    try:
        data = root.fs.cat_file(f"{root.path}/{FAILURES}/{key}.parquet")
    except FileNotFoundError:
        return -1
    rows = len(pq.read_table(io.BytesIO(data), columns=["row"]).column(0).unique())
    if rows == facts.get("failed") and not belongs(data, facts):
        raise ValueError("its failures file was written by another run than its embeddings file")
    return rows


def _versions(root: Root) -> dict[str, str]:
    """The version of each partition's two files, by key."""
    failures = file_versions(root, FAILURES)
    return {
        key: f"{version} {failures.get(key, '')}" for key, version in file_versions(root, EMBEDDINGS).items()
    }


def _read_cache(root: Root, cache: str) -> list[Measures]:
    try:
        table = pq.read_table(io.BytesIO(root.fs.cat_file(f"{root.path}/{cache}")))
    except (FileNotFoundError, pa.ArrowInvalid):
        return []
    # Another version of the project may have written other measures.
    if table.column_names != [one.name for one in fields(Measures)]:
        return []
    return [Measures(**row) for row in table.to_pylist()]


def _write_cache(root: Root, cache: str, measures: list[Measures]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(one) for one in measures]), sink)
    write_bytes(root, cache, sink.getvalue())
