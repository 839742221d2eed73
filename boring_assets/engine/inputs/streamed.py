"""Shards without a parquet: a tar of webdataset's kind, or a TFRecord file.

Such a file is read once, from start to end. Its images are yielded as they are read; its other columns and
the number of rows are known at the end.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.columns import (
    ALIASES,
    ImageColumns,
    by_lower,
    with_texts,
    without_data_urls,
    without_images,
)
from boring_assets.engine.inputs.layouts import Image, OpenShard
from boring_assets.engine.inputs.rows import check_rows
from boring_assets.engine.inputs.texts import first_text
from boring_assets.engine.samples import ColumnNames
from boring_assets.errors import ShardError

MAX_TEXT_BYTES = 1 << 20
"""A longer text beside an image is left out."""
_MAX_COLUMNS = 512
_INT64 = 1 << 63

Record = dict[str, Any]


@dataclass
class StreamedShard(OpenShard):
    """A shard that is read once from start to end, or to row `max_rows`; nothing is read yet."""

    streamed: ClassVar[bool] = True

    max_rows: int | None = None
    _row_count: int = field(default=0, init=False)
    _size: int = field(default=0, init=False)

    @abstractmethod
    def _read(self) -> Iterator[Image]:
        """Yields images as they come, each row at most once, and keeps what stands beside them."""

    @abstractmethod
    def _records(self) -> list[Record]:
        """The columns of each row, once all images were read; also of rows past `max_rows`."""

    def _first(self) -> tuple[str, ...]:
        """Columns that always exist, before the others."""
        return ("key",)

    @abstractmethod
    def why_absent(self, row: int) -> str:
        """Why a row has no image."""

    def images(self) -> Iterator[Image]:  # noqa: D102
        answered: set[int] = set()
        try:
            for row, image in self._read():
                answered.add(row)
                yield row, image
        except OSError as error:
            raise ShardError(
                f"{self.shard.uri} cannot be read: {error}. Write it again, or try it again."
            ) from error
        records = self._records()
        kept = records[: self.max_rows]
        self.cut = len(records) - len(kept)
        rows = to_table(kept, self._first(), self.shard.uri, self.limits)
        rows, self.columns = with_texts(rows, self.shard.columns, self.shard.uri)
        keep = self.shard.columns.keep_images
        rows, images = without_images(rows, self.columns, keep=keep)
        self.notes += ImageColumns(None, images, False).notes(keep)
        self.rows = without_data_urls(rows, self.columns)
        for row in range(self.rows.num_rows):
            if row not in answered:
                yield row, self.absent(row, self.why_absent(row))

    def _count(self, *values: Any, rows: int = 0) -> None:
        """Adds up what is kept in memory; raises ShardError if it is more than the limits allow."""
        self._row_count += rows
        self._size += sum(len(value) if isinstance(value, str) else 8 for value in values)
        check_rows(self._row_count, self._size, self.shard.uri, self.limits)


def clean(value: Any) -> Any:
    """A value of JSON, which can spell halves of characters that are not UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def caption_in(values: Record, names: ColumnNames) -> str | None:
    """The caption among the values of a sample, under the name that the settings give or a usual one."""
    lower = by_lower(values)
    for alias in (names.caption,) if names.caption else ALIASES["caption"]:
        name = alias if names.caption else lower.get(alias)
        if name in values:
            return clean(first_text(values[name]))
    return None


def to_table(records: list[Record], first: Iterable[str], uri: str, limits: Limits) -> pa.Table:
    """Returns a table with a row for each record and a column for each name; mixed types become text.

    The columns `first` are there in any case, before the others.

    Raises:
        ShardError: There are too many columns, or they take too much memory.
    """
    names = list(dict.fromkeys([*first, *(name for record in records for name in record)]))
    if len(names) > _MAX_COLUMNS:
        raise ShardError(
            f"{uri} has {len(names)} different names in its samples, more than {_MAX_COLUMNS}: "
            "its metadata is damaged, or it is not a dataset of images."
        )
    columns, size = {}, 0
    for name in names:
        columns[name] = _column([record.get(name) for record in records])
        size += columns[name].nbytes
        check_rows(len(records), size, uri, limits)
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if not kinds or kinds == {str}:
        return pa.array(values, pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or -_INT64 <= value < _INT64 for value in values):
        return pa.array(values, pa.int64())
    if kinds in ({float}, {int, float}) and not any(abs(value or 0) >= 2**53 for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
