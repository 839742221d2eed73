"""Shards without a parquet: a bare tar (webdataset), or a TFRecord file.

Such a file is read once, as a stream: a row has its number as soon as its key is seen, and what stands beside
the images is gathered on the way. How many rows there are is known at the end.
"""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.columns import find_columns
from boring_assets.engine.inputs.layouts import Image, OpenShard
from boring_assets.engine.inputs.rows import check_rows
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError

MAX_TEXT_BYTES = 1 << 20
"""A text beside an image that is longer is left out."""
_MOST_COLUMNS = 512
_INT64 = 1 << 63

Record = dict[str, Any]


@dataclass
class Stream(OpenShard):
    """A shard that is read once, and tells its rows at the end.

    Attributes:
        most_rows: Take only so many rows from its start; None takes all.
        numbers: The row of each key so far.
    """

    streamed: ClassVar[bool] = True
    first: ClassVar[tuple[str, ...]] = ("key",)
    """Columns that are there in any case, and stand in front."""

    most_rows: int | None
    numbers: dict[str, int] = field(default_factory=dict, init=False)
    _records: list[Record] = field(default_factory=list, init=False)
    _left_out: set[str] = field(default_factory=set, init=False)
    _size: int = field(default=0, init=False)

    @abstractmethod
    def _read(self) -> Iterator[Image]:
        """Yields images as they come, each row at most once, and gathers what stands beside them."""

    def images(self) -> Iterator[Image]:  # noqa: D102
        taken: set[int] = set()
        try:
            for row, image in self._read():
                if row not in taken:
                    taken.add(row)
                    yield row, image
        except OSError as error:
            raise ShardError(f"{self.shard.uri} cannot be read: {error}.") from error
        keyed = [{"key": key} | record for key, record in zip(self.numbers, self._records, strict=True)]
        self.rows = to_table(keyed, self.first, self.shard.uri, self.limits)
        self.columns = find_columns(self.rows.schema)
        self.cut = len(self._left_out)
        for row in range(self.rows.num_rows):
            if row not in taken:
                yield row, self.absent(row, self.why_absent(row))

    @abstractmethod
    def why_absent(self, row: int) -> str:
        """Says why a row had no image, once all of them are read."""

    def row_of(self, key: str) -> int | None:
        """The row of a key, which is the next one where the key is new; None where no more are taken.

        Raises:
            ShardError: There are more rows than the limits allow.
        """
        row = self.numbers.get(key)
        if row is not None:
            return row
        if self.most_rows is not None and len(self._records) >= self.most_rows:
            self._left_out.add(key)
            return None
        row = self.numbers[key] = len(self._records)
        self._records.append({})
        self._count(key)
        return row

    def gather(self, row: int, values: Record, *, replace: bool = False) -> None:
        """Adds what stands beside an image; the first value of a name stays, if it is not replaced.

        Raises:
            ShardError: There is more of it than the limits allow.
        """
        record = self._records[row]
        for name, value in values.items():
            if replace or name not in record:
                record[name] = value
                self._count(name, value)

    def _count(self, *values: Any) -> None:
        self._size += sum(len(value) if isinstance(value, str) else 8 for value in values)
        check_rows(len(self._records), self._size, self.shard.uri, self.limits)


def unread(
    shard: Shard, limits: Limits, most_rows: int | None
) -> tuple[Shard, pa.Table, dict[str, str], Limits, int, int | None]:
    """The fields of a stream of which nothing was read."""
    return shard, pa.table({}), {}, limits, 0, most_rows


def to_text(data: bytes) -> str | None:
    """UTF-8 text; None where it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def parse_json(data: bytes) -> Record:
    """The members of a JSON object, nested ones as JSON text; empty where the text is no object."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return {_clean(name): _scalar(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _scalar(value: Any) -> Any:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    """JSON can spell halves of characters, which are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def to_table(records: list[Record], first: Iterable[str], uri: str, limits: Limits) -> pa.Table:
    """One row a record, one column a name; a name whose values are of several kinds becomes text.

    Args:
        records: The rows.
        first: Columns that are there in any case, and stand in front.
        uri: The shard, for messages.
        limits: The most that they may take in memory.

    Returns:
        The table.

    Raises:
        ShardError: There are too many columns, or they take too much.
    """
    names = list(dict.fromkeys([*first, *(name for record in records for name in record)]))
    if len(names) > _MOST_COLUMNS:
        raise ShardError(
            f"{uri} has {len(names)} different names in its samples, more than {_MOST_COLUMNS}: "
            "its metadata is damaged, or it is no dataset of images."
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
    if kinds in ({float}, {int, float}) and all(abs(value or 0) < 2**53 for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
