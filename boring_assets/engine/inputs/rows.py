"""The rows of a parquet file, whose footer and pages are not believed before they have been read."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import Limits
from boring_assets.errors import ShardError

_MOST_BATCH, _LEAST_BATCH = 65_536, 16


def read_rows(
    file: pq.ParquetFile, names: list[str], texts: Sequence[str], uri: str, limits: Limits
) -> pa.Table:
    """Reads columns of a parquet file, within the limits on rows and bytes.

    Args:
        file: The file.
        names: Which columns.
        texts: Those of them that the output will hold as text.
        uri: The file's URI, for messages.
        limits: The limits.

    Returns:
        The columns, whose rows can be picked and written again.

    Raises:
        ShardError: There are more rows or bytes than the limits allow.
        pa.ArrowException: The file is damaged, or has text that is not UTF-8.
    """
    check_rows(file.metadata.num_rows, 0, uri, limits)
    if not names:
        return file.read(columns=[])
    batches, count, size = [], 0, 0
    for batch in file.iter_batches(batch_size=_batch_rows(file, limits), columns=names):
        count, size = count + batch.num_rows, size + batch.nbytes
        check_rows(count, size, uri, limits)
        batches.append(batch)
    fields = [field for field in file.schema_arrow if field.name in names]
    rows = _without_views(pa.Table.from_batches(batches, batches[0].schema if batches else pa.schema(fields)))
    rows.validate(full=True)
    for name in texts:
        rows[name].cast(pa.string())
    rows.slice(0, 1).take(pa.array(range(min(1, count)), pa.int64()))  # some types cannot be picked from
    return rows


def check_rows(rows: int, size: int, uri: str, limits: Limits) -> None:
    """Checks how much was read of a shard so far.

    Args:
        rows: Its rows.
        size: Bytes of its columns, the images left out.
        uri: Its URI, for messages.
        limits: The limits.

    Raises:
        ShardError: It is past one of them.
    """
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


def _batch_rows(file: pq.ParquetFile, limits: Limits) -> int:
    """Rows to decode at once: each of them may be the longest entry of a dictionary.

    Row groups say their size; to ask their columns would abort the process where a footer is damaged.
    """
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    longest = max((group.total_byte_size for group in groups), default=1)
    return min(_MOST_BATCH, max(_LEAST_BATCH, limits.shard_bytes // max(1, longest)))


def _without_views(rows: pa.Table) -> pa.Table:
    """Arrow has no way yet to pick rows of a view column; parquet itself knows no views."""
    for number, column in enumerate(rows.schema):
        if (plain := _plain(column.type)) != column.type:
            rows = rows.set_column(number, column.with_type(plain), rows[number].cast(plain))
    return rows


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type with every view in it, however deep, replaced by what it is a view of."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    for is_list, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type), kind.keys_sorted)
    return kind
