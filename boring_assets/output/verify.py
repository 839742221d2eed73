"""Checks the committed files of one partition: they open, add up, and hold unit vectors.

`check_rows` is a pure function over rows and facts; `check_files` reads them, a batch at a time, with the
checksum that each page of our parquet files carries.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.samples import Reason
from boring_assets.output.findings import Checked, Finding, Kind, Severity
from boring_assets.output.schema import (
    FAILURES_SCHEMA,
    META_PREFIX,
    ROW,
    belongs,
    count_repeated,
    read_facts,
    row_hashes,
)
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root

_BATCH_ROWS = 4096
_READ_BYTES = 4 * 2**20
# How far a norm may be from 1. Rounding a unit vector to float16 moves its norm by up to 2^-11.
_TOLERANCE = {"float": 1e-4, "halffloat": 2e-3}
_COUNTS = ("rows", "embedded", "failed", "dim")
_TEXTS = ("url", "key", "caption")


def check_rows(
    embedded: Iterable[pa.RecordBatch], failed: Iterable[pa.RecordBatch], facts: Mapping[str, Any]
) -> list[Finding]:
    """Returns what is wrong with a partition's rows, compared with each other and with its metadata.

    Args:
        embedded: Rows of the embeddings file, with the columns of the output contract.
        failed: Rows of the failures file.
        facts: Metadata of the embeddings file; see `check_facts`.
    """
    vectors, hashes, failed_rows, reasons = _Vectors(), [], [], Counter[str]()
    embedded_rows: list[np.ndarray] = []
    for batch in embedded:
        vectors.add(batch["embedding"])
        hashes.append(row_hashes(batch["key"], batch["url"]))
        if ROW in batch.schema.names:  # files of earlier versions have no such column
            embedded_rows.append(batch[ROW].to_numpy(zero_copy_only=False))
    for batch in failed:
        failed_rows.append(batch["row"].to_numpy(zero_copy_only=False))
        reasons.update(batch["reason"].to_pylist())
        hashes.append(row_hashes(batch["key"], batch["url"]))
    rows = np.concatenate(failed_rows) if failed_rows else np.empty(0, np.int64)
    findings = [
        *_check_counts(vectors.rows, len(rows), reasons, facts),
        *vectors.findings(),
        *_check_failed(rows, reasons, facts),
        *_check_repeated(count_repeated(hashes), facts),
    ]
    if embedded_rows and not findings:  # rows that the counts miss are reported by those
        findings.extend(_check_input_rows(np.concatenate(embedded_rows), rows, facts["rows"]))
    return findings


class _Vectors:
    """Counts the vectors that are not finite, or not of unit length, and keeps the first of each."""

    def __init__(self) -> None:
        self.rows = 0
        self._not_finite: list[int] = []
        self._not_unit: list[tuple[int, float]] = []
        self._counts: Counter[Kind] = Counter()

    def add(self, column: pa.FixedSizeListArray) -> None:
        size = column.type.list_size
        values = column.values.slice(column.offset * size, len(column) * size)
        vectors = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, size)
        finite = np.isfinite(vectors).all(axis=1) & column.is_valid().to_numpy(zero_copy_only=False)
        norms = np.linalg.norm(vectors, axis=1)
        off = finite & (np.abs(norms - 1) > _TOLERANCE[str(column.type.value_type)])
        self._counts[Kind.NOT_FINITE] += int((~finite).sum())
        self._counts[Kind.NOT_UNIT] += int(off.sum())
        self._not_finite += [self.rows + int(row) for row in np.flatnonzero(~finite)[:1]]
        self._not_unit += [(self.rows + int(row), float(norms[row])) for row in np.flatnonzero(off)[:1]]
        self.rows += len(column)

    def findings(self) -> Iterator[Finding]:
        if self._not_finite:
            yield Finding(
                Kind.NOT_FINITE,
                f"{self._counts[Kind.NOT_FINITE]:,} of {self.rows:,} vectors hold NaN, an infinity or "
                f"nothing; the first is row {self._not_finite[0]} of the file.",
            )
        if self._not_unit:
            row, norm = self._not_unit[0]
            yield Finding(
                Kind.NOT_UNIT,
                f"{self._counts[Kind.NOT_UNIT]:,} of {self.rows:,} vectors are not of length 1; the first "
                f"is row {row} of the file, of length {norm:.5g}.",
            )


def _check_counts(
    embedded: int, failed: int, reasons: Counter[str], facts: Mapping[str, Any]
) -> Iterator[Finding]:
    if facts["rows"] != facts["embedded"] + facts["failed"]:
        yield Finding(
            Kind.COUNTS,
            f"its metadata counts {facts['rows']:,} rows in, but {facts['embedded']:,} embedded and "
            f"{facts['failed']:,} failed.",
        )
    for name, count in (("embedded", embedded), ("failed", failed)):
        if facts[name] != count:
            yield Finding(
                Kind.COUNTS, f"its metadata counts {facts[name]:,} {name} rows, but {count:,} are there."
            )
    if failed == facts["failed"] and dict(reasons) != facts.get("failed_by_reason", dict(reasons)):
        yield Finding(
            Kind.COUNTS,
            f"its metadata counts the failures as {facts['failed_by_reason']}, but they are {dict(reasons)}.",
        )


def _check_failed(rows: np.ndarray, reasons: Counter[str], facts: Mapping[str, Any]) -> Iterator[Finding]:
    if unknown := sorted(str(reason) for reason in set(reasons) - {*map(str, Reason)}):
        yield Finding(Kind.FAILURES, f"the failures file has unknown reasons: {unknown[:5]}.")
    # A null makes floats of the whole column.
    if rows.dtype != np.int64 or ((rows < 0) | (rows >= facts["rows"])).any():
        yield Finding(
            Kind.FAILURES,
            f"the failures file names rows that its shard of {facts['rows']:,} rows does not have.",
        )
    elif len(np.unique(rows)) != len(rows):
        yield Finding(Kind.FAILURES, "the failures file names a row twice.")


def _check_input_rows(embedded: np.ndarray, failed: np.ndarray, rows: int) -> Iterator[Finding]:
    """Every input row is embedded or failed, once, and embeddings are in input order."""
    # A null makes floats of the whole column.
    if embedded.dtype != np.int64 or ((embedded < 0) | (embedded >= rows)).any():
        yield Finding(Kind.ROWS, f"its embeddings name rows that its shard of {rows:,} rows does not have.")
        return
    problems = []
    if (np.diff(embedded) <= 0).any():
        problems.append("its embeddings are not in the order of the input's rows, or name one twice")
    if len(both := np.intersect1d(embedded, failed)):
        problems.append(f"{len(both):,} rows are embedded and failed, the first is row {both[0]}")
    if len(lost := np.setdiff1d(np.arange(rows), np.concatenate([embedded, failed]))):
        problems.append(f"{len(lost):,} rows are neither embedded nor failed, the first is row {lost[0]}")
    if problems:
        yield Finding(Kind.ROWS, f"{'; '.join(problems)}.")


def _check_repeated(repeated: int, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Rows with the same key and URL are allowed where the source has them; the commit counted those."""
    counted = facts.get("repeated")
    if counted is None and repeated:
        yield Finding(
            Kind.REPEATED,
            f"{repeated:,} rows have the key and URL of an earlier row; whether the source has them twice "
            "was not noted when this partition was embedded.",
            Severity.NOTE,
        )
    elif counted is not None and repeated != counted:
        yield Finding(
            Kind.REPEATED,
            f"{repeated:,} rows have the key and URL of an earlier row; its source has {counted:,}.",
        )


def check_facts(facts: Mapping[str, Any], schema: pa.Schema) -> list[Finding]:
    """Returns what is wrong with the metadata and the columns of an embeddings file.

    The rows can only be checked where this finds nothing.

    Args:
        facts: Its metadata; empty if this project did not write it.
        schema: Its columns.
    """
    if not facts:
        return [
            Finding(Kind.FACTS, "the file has no `boring_assets` metadata: this project did not write it.")
        ]
    bad = [name for name in _COUNTS if type(facts.get(name)) is not int or facts[name] < 0]
    bad += [name for name in ("model", "settings", "source_version") if not isinstance(facts.get(name), str)]
    if bad:
        return [Finding(Kind.FACTS, f"its metadata lacks {', '.join(bad)}.")]
    wrong = [
        name for name in _TEXTS if name not in schema.names or not pa.types.is_string(schema.field(name).type)
    ]
    wrong += [
        name
        for name in schema.names
        if name not in (*_TEXTS, "embedding", ROW) and not name.startswith(META_PREFIX)
    ]
    if ROW in schema.names and schema.field(ROW).type != pa.int64():
        wrong.append(ROW)
    if wrong or len(set(schema.names)) != len(schema.names):
        return [
            Finding(Kind.SCHEMA, f"columns are missing, foreign or of the wrong type: {', '.join(wrong)}.")
        ]
    kind = schema.field("embedding").type if "embedding" in schema.names else pa.null()
    if not pa.types.is_fixed_size_list(kind) or str(kind.value_type) not in _TOLERANCE:
        return [Finding(Kind.SCHEMA, f"the column embedding is {kind}, not fixed_size_list of floats.")]
    if kind.list_size != facts["dim"]:
        return [
            Finding(
                Kind.SCHEMA, f"vectors have {kind.list_size} numbers, but {facts['dim']} by its metadata."
            )
        ]
    return []


def check_files(root: Root, embeddings: str, failures: str) -> Checked:
    """Reads and checks the two files of one partition, a batch of rows at a time.

    Raises:
        StorageError: The storage cannot be read. A damaged file raises nothing; it is a finding.
    """
    facts: Mapping[str, Any] = {}
    at = embeddings
    try:
        with _open(root, embeddings) as file:
            facts = read_facts(file.schema_arrow.metadata)
            if wrong := check_facts(facts, file.schema_arrow):
                return Checked(facts if wrong[0].kind is Kind.SCHEMA else {}, wrong)
            at = failures
            try:
                data = root.fs.cat_file(f"{root.path}/{failures}")
            except FileNotFoundError:
                message = f"{root.uri}/{failures} is missing: which rows failed, and why, is lost."
                return Checked(facts, [Finding(Kind.NO_FAILURES, message)])
            with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as failed:
                if not failed.schema_arrow.equals(FAILURES_SCHEMA):
                    message = f"the failures file has the columns {failed.schema_arrow.names} or other types."
                    return Checked(facts, [Finding(Kind.FAILURES, message)])
                rows = list(_batches(failed))
            at = embeddings
            findings = check_rows(_batches(file), rows, facts)
            if not findings and not belongs(data, facts):
                findings = [
                    Finding(
                        Kind.FAILURES,
                        "the failures file was written by another run than the embeddings file.",
                    )
                ]
            return Checked(facts, findings)
    except Exception as error:
        if not _is_damage(error):
            raise storage_error(error, f"{root.uri}/{at}", "read") from error
        message = f"{root.uri}/{at} is damaged ({type(error).__name__}: {str(error)[:200]})."
        return Checked(facts, [Finding(Kind.UNREADABLE, message)])


def _open(root: Root, path: str) -> pq.ParquetFile:
    # Enough for the first request, which reads only the footer; some filesystems read 50 MB by default.
    file = root.fs.open(f"{root.path}/{path}", "rb", block_size=_READ_BYTES)
    return pq.ParquetFile(file, buffer_size=_READ_BYTES, page_checksum_verification=True)


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
        batch.validate(full=True)
        yield batch


def _is_damage(error: Exception) -> bool:
    """Whether a file's content is damaged, rather than its storage unreachable."""
    if type(error) is OSError:  # how pyarrow says that a page or a footer is damaged
        return error.errno is None
    return isinstance(error, pa.ArrowException | json.JSONDecodeError | UnicodeDecodeError)
