"""Shards without a parquet: a bare tar (webdataset), or a TFRecord file.

Their rows are known only when all of them was read, so such a file is read twice: once for what stands beside
the images, and once for the images.
"""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from boring_assets.errors import ShardError

MAX_TEXT_BYTES = 1 << 20
"""A text beside an image that is longer is left out."""
_MOST_COLUMNS = 512
_INT64 = 1 << 63

Record = dict[str, Any]


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


def to_table(records: list[Record], first: Iterable[str], uri: str) -> pa.Table:
    """One row a record, one column a name; a name whose values are of several kinds becomes text.

    Args:
        records: The rows.
        first: Columns that are there in any case, and stand in front.
        uri: The shard, for messages.

    Returns:
        The table.

    Raises:
        ShardError: There are too many columns.
    """
    names = list(dict.fromkeys([*first, *(name for record in records for name in record)]))
    if len(names) > _MOST_COLUMNS:
        raise ShardError(
            f"{uri} has {len(names)} different names in its samples, more than {_MOST_COLUMNS}: "
            "its metadata is damaged, or it is no dataset of images."
        )
    return pa.table({name: _column([record.get(name) for record in records]) for name in names})


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
