"""The rows of a parquet file. Its footer and pages are not trusted: limits are checked while it is read."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.read_ahead import in_parallel
from boring_assets.engine.inputs.texts import to_text
from boring_assets.errors import ShardError

_MAX_BATCH, _MIN_BATCH = 65_536, 16
_PARALLEL = 16


def read_rows(
    file: pq.ParquetFile,
    names: list[str],
    uri: str,
    limits: Limits,
    open_again: Callable[[], pq.ParquetFile] | None,
) -> pa.Table:
    """Reads columns, or fields of structs as `column.field`, within the limits on rows and bytes.

    `open_again` opens the file once more, to read row groups at the same time where each read is a request.

    Returns:
        The columns, without view types. A text that is not UTF-8 is null.

    Raises:
        ShardError: There are more rows or bytes than the limits allow.
        pa.ArrowException: The file is damaged.
    """
    check_rows(file.metadata.num_rows, 0, uri, limits)
    if not names:
        return file.read(columns=[])
    batches, count, size = [], 0, 0
    for batch in _batches(file, names, limits, open_again):
        count, size = count + batch.num_rows, size + batch.nbytes
        check_rows(count, size, uri, limits)
        batches.append(batch)
    if not batches:
        return file.read(columns=names)
    rows = _without_bad_texts(_without_views(pa.Table.from_batches(batches)))
    rows.slice(0, 1).take(pa.array(range(min(1, count)), pa.int64()))  # fails for types without `take`
    return rows


def check_rows(rows: int, size: int, uri: str, limits: Limits) -> None:
    """Checks how much was read of a shard so far; raises ShardError if it is past a limit."""
    if rows > limits.shard_rows:
        raise ShardError(
            f"{uri} has {rows} rows or more; the limit is {limits.shard_rows} (BORING_MAX_SHARD_ROWS). "
            "Split it, or raise the limit."
        )
    if size > limits.shard_bytes:
        raise ShardError(
            f"{uri} has {size} bytes or more besides its images; the limit is {limits.shard_bytes} "
            "(BORING_MAX_SHARD_MB). Split it, or raise the limit."
        )


def _batches(
    file: pq.ParquetFile, names: list[str], limits: Limits, open_again: Callable[[], pq.ParquetFile] | None
) -> Iterator[pa.RecordBatch]:
    largest, groups = largest_row_group(file.metadata), range(file.metadata.num_row_groups)
    # So many rows that memory suffices even with long dictionary entries.
    rows = min(_MAX_BATCH, max(_MIN_BATCH, limits.shard_bytes // max(1, largest)))
    if open_again is None or len(groups) < 2 or 2 * _PARALLEL * largest > limits.shard_bytes:
        yield from file.iter_batches(batch_size=rows, columns=names)
        return

    def read(group: int) -> list[pa.RecordBatch]:
        part = open_again()
        try:
            return list(part.iter_batches(rows, [group], names))
        finally:
            part.close(force=True)

    for batches in in_parallel(groups, read, _PARALLEL):
        yield from batches


def largest_row_group(metadata: pq.FileMetaData) -> int:
    """Returns the bytes of the largest row group, decompressed; 0 where there is none.

    Not those of a column: where a footer is damaged, reading a column's metadata can abort the process.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return max((group.total_byte_size for group in groups), default=0)


def _without_views(rows: pa.Table) -> pa.Table:
    """Converts view columns: Arrow cannot take rows of them yet, and parquet has no views."""
    for number, column in enumerate(rows.schema):
        if (plain := map_type(column.type, _without_view)) != column.type:
            rows = rows.set_column(number, column.with_type(plain), rows[number].cast(plain))
    return rows


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def _without_bad_texts(rows: pa.Table) -> pa.Table:
    """Returns the rows with null for each text that is not UTF-8, also inside lists and structs."""
    for number, field in enumerate(rows.schema):
        try:
            rows[number].validate(full=True)
        except pa.ArrowInvalid:
            column = rows[number]
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            readable = map_type(column.type, _as_binary)
            if readable == column.type:
                raise
            values = [_decoded(value, column.type) for value in column.cast(readable).to_pylist()]
            column = pa.chunked_array([pa.array(values, column.type)])
            rows = rows.set_column(number, field.with_type(column.type), column)
    return rows


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    return pa.large_binary() if pa.types.is_large_string(kind) else kind


def _decoded(value: Any, kind: pa.DataType) -> Any:
    """A value whose texts were read as bytes, with its texts decoded."""
    if value is None:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return to_text(value)
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    return value


def map_type(kind: pa.DataType, replace: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type with each type in it replaced, however deep in structs, lists and maps."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(map_type(field.type, replace)) for field in kind])
    for is_list, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(map_type(kind.value_type, replace)))
    if pa.types.is_map(kind):
        return pa.map_(map_type(kind.key_type, replace), map_type(kind.item_type, replace), kind.keys_sorted)
    return replace(kind)
