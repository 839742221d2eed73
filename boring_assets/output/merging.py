"""Reads a partition's committed rows, merges a retry into them, and removes excluded rows."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.inputs.exclusions import Exclusions
from boring_assets.engine.results import EmbeddedShard
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ShardError
from boring_assets.output.commit import write_pair
from boring_assets.output.files import to_parquet
from boring_assets.output.identity import differences, identity
from boring_assets.output.schema import (
    FAILURES_DIGEST,
    FAILURES_SCHEMA,
    METADATA_KEY,
    ROW,
    belongs,
    digest,
    input_rows,
    read_facts,
)
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, FAILURES
from partitions.shards import uri_of

IDENTIFYING = {"key": "key", "url": "url", "sha256": "meta_sha256"}
"""The columns by which rows are excluded, and their names in an embeddings file."""
_READ_BYTES = 4 * 2**20


@dataclass(frozen=True)
class CommittedRows:
    """The committed rows of one partition.

    Attributes:
        uri: URI of the embeddings file.
        facts: Its metadata.
        table: Its rows, or only some of its columns.
        rows: int64 [n], the shard's row of each row of `table`, in rising order.
        failed: The rows of the failures file that are not embedded.
    """

    uri: str
    facts: dict[str, Any]
    table: pa.Table
    rows: np.ndarray
    failed: pa.Table

    @property
    def failures(self) -> dict[int, Failure]:
        """Why each failed row failed, by its row in the shard."""
        columns = (self.failed[name].to_pylist() for name in (ROW, "reason", "detail"))
        return {
            row: Failure(Reason(reason), detail or "") for row, reason, detail in zip(*columns, strict=True)
        }

    def lost_rows(self) -> set[int]:
        """Returns the rows that neither file has: those of a retry that was killed between its two writes."""
        held = {*self.rows.tolist(), *self.failed[ROW].to_pylist()}
        return set(range(self.facts["rows"])) - held

    def rows_to_retry(self, reasons: Collection[Reason]) -> frozenset[int]:
        """Returns the rows that failed for one of some reasons, and the lost ones."""
        failed = {row for row, failure in self.failures.items() if failure.reason in reasons}
        return frozenset(failed | self.lost_rows())


def read_committed(root: Root, key: str, columns: list[str] | None = None) -> CommittedRows:
    """Reads both files of a partition.

    Args:
        root: The output.
        key: The partition key.
        columns: Read only these columns of the embeddings; None is all.

    Raises:
        ShardError: The two files were written by different runs, and their rows are unknown.
        StorageError: They cannot be read.
    """
    path = uri_of("", key)
    uri = f"{root.uri}/{EMBEDDINGS}/{path}"
    with root.open(f"{EMBEDDINGS}/{path}", block_size=_READ_BYTES) as file:
        parquet = pq.ParquetFile(file)
        facts: dict[str, Any] = dict(read_facts(parquet.schema_arrow.metadata))
        names = parquet.schema_arrow.names
        wanted = names if columns is None else [name for name in names if name in {*columns, ROW}]
        table = parquet.read(columns=wanted)
    data = root.read(f"{FAILURES}/{path}")
    with storage_errors(f"{root.uri}/{FAILURES}/{path}", "read"):
        failed = pq.read_table(pa.BufferReader(data))
    known = ROW in names or belongs(data, facts)
    rows = input_rows(table, failed, facts) if known else None
    if rows is None:
        raise ShardError(
            f"{uri} and its failures file were written by different runs. Embed the shard again: "
            "boring-assets verify --repair."
        )
    numbers = rows.to_numpy()
    # A removal that was killed between its two writes has left rows in both.
    return CommittedRows(
        uri, facts, table, numbers, failed.filter(np.isin(failed[ROW], numbers, invert=True))
    )


def merge_retried(
    result: EmbeddedShard, committed: CommittedRows, model_facts: Mapping[str, Any], exclusions: Exclusions
) -> EmbeddedShard:
    """Merges the rows of a retry into what is committed, in the order of the input.

    Args:
        result: The result of embedding `shard.only_rows`.
        committed: The committed partition, with all its columns.
        model_facts: Facts of the model of `result`.
        exclusions: Images that must not stay embedded either.

    Returns:
        The whole shard, as if all of it had been embedded at once.

    Raises:
        ShardError: The committed rows are of another version of the shard, of another model, or of settings
            with which the shard had other rows.
    """
    _check_same(result, committed, model_facts)
    new = np.isin(result.embedded, committed.rows, invert=True)  # another run may have been faster
    rows = np.concatenate([committed.rows, result.embedded[new]])
    vectors = np.concatenate([vectors_of(committed.table), result.embeddings[new]])
    excluded = exclusions.find_rows(result.rows, result.columns)
    kept = np.isin(rows, list(excluded), invert=True)
    rows, vectors = rows[kept], vectors[kept]
    order = np.argsort(rows)
    embedded = set(rows.tolist())
    failures = committed.failures | result.failures | excluded
    return replace(
        result,
        embedded=rows[order],
        embeddings=vectors[order],
        failures={row: failures[row] for row in sorted(failures) if row not in embedded},
    )


def find_excluded(committed: CommittedRows, exclusions: Exclusions) -> dict[int, Failure]:
    """Returns the embedded rows that are excluded by their key, URL or `sha256` column, and their failures.

    Args:
        committed: The partition, with at least the columns of `IDENTIFYING`.
        exclusions: What must not be embedded.
    """
    found = exclusions.find_rows(committed.table, IDENTIFYING)
    return {int(committed.rows[at]): failure for at, failure in found.items()}


def remove_rows(root: Root, key: str, excluded: Mapping[int, Failure]) -> dict[str, Any]:
    """Moves embedded rows of a partition to its failures; returns the embeddings file's new metadata.

    Args:
        root: The output.
        key: The partition key.
        excluded: Which rows, and the failure to record for each.

    Raises:
        ShardError: The partition's files do not hold all of its rows.
        StorageError: They cannot be read or written.
    """
    committed = read_committed(root, key)
    if lost := committed.lost_rows():
        raise ShardError(
            f"{committed.uri} lacks {len(lost)} rows, since a retry was killed while it wrote them. Run it "
            "again: boring-assets retry."
        )
    leaving = np.isin(committed.rows, list(excluded))
    gone = committed.table.filter(leaving)
    reasons = [excluded[int(row)] for row in committed.rows[leaving]]
    moved = pa.table(
        {
            ROW: committed.rows[leaving],
            "key": gone["key"],
            "url": gone["url"],
            "reason": [failure.reason.value for failure in reasons],
            "detail": [failure.detail for failure in reasons],
        },
        schema=FAILURES_SCHEMA,
    )
    failed = pa.concat_tables([committed.failed, moved]).sort_by(ROW)
    data = to_parquet(failed)
    facts = committed.facts | {
        "embedded": committed.table.num_rows - moved.num_rows,
        "failed": failed.num_rows,
        "failed_by_reason": dict(Counter(failed["reason"].to_pylist()).most_common()),
        FAILURES_DIGEST: digest(data),
    }
    kept = committed.table.filter(~leaving).replace_schema_metadata(
        {METADATA_KEY: json.dumps(facts).encode()}
    )
    path = uri_of("", key)
    write_pair(root, (f"{FAILURES}/{path}", data), (f"{EMBEDDINGS}/{path}", to_parquet(kept)))
    return facts


def _check_same(result: EmbeddedShard, committed: CommittedRows, model_facts: Mapping[str, Any]) -> None:
    facts, shard = committed.facts, result.shard
    if facts["source_version"] != shard.version:
        raise ShardError(f"{committed.uri} was embedded from another version of {shard.uri}. Run it again.")
    if message := differences(identity(facts), identity(model_facts)):
        raise ShardError(f"{committed.uri} has {message}. Give the settings that it was embedded with.")
    same = facts["rows"] == result.rows.num_rows
    for name in ("key", "url"):
        source = result.columns.get(name)
        if same and source:
            now = result.rows[source].cast(pa.string()).take(pa.array(committed.rows))
            same = now.equals(committed.table[name])
    if not same:
        raise ShardError(
            f"{shard.uri} has other rows, keys or URLs than when {committed.uri} was embedded: its settings "
            "have changed. Give those that it was embedded with, or embed it again."
        )


def vectors_of(table: pa.Table) -> np.ndarray:
    """Returns the embeddings of a table, float32 [n, dim]."""
    column = table["embedding"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float32, copy=False).reshape(len(table), column.type.list_size)
