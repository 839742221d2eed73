"""A shard's rows, and where each image is: in a column, in a tar, in a folder, or behind a URL."""

from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.bare_tar import open_bare_tar
from boring_assets.engine.inputs.columns import IMAGE_COLUMNS, find_columns, find_image_column
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.layouts import ColumnShard, FolderShard, OpenShard, TarShard, UrlShard
from boring_assets.engine.inputs.rows import read_rows
from boring_assets.engine.inputs.tar import Start, read_start
from boring_assets.engine.inputs.tfrecord import TFRecordBeside, open_tfrecord
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError

_START_BYTES = 8 * 2**20


def opener_of(path: str) -> Callable[..., OpenShard] | None:
    """What opens a shard that is no parquet: a bare tar, or a TFRecord file."""
    if path.endswith(".parquet"):
        return None
    return open_bare_tar if path.endswith(".tar") else open_tfrecord


def open_shard(shard: Shard, limits: Limits, fetcher: Fetcher, most_rows: int | None = None) -> OpenShard:
    """Opens a shard and decides where its images are.

    Args:
        shard: The shard.
        limits: The most that one image may cost.
        fetcher: Fetches what is behind URLs, where nothing nearer is.
        most_rows: Take only so many rows from its start; None takes all.

    Returns:
        The open shard, to be closed by whoever reads it.

    Raises:
        ShardError: The parquet cannot be read, is past the limits, or holds nothing that leads to images.
    """
    if opener := opener_of(shard.path):
        return opener(shard, limits, most_rows)
    try:
        file = _open_parquet(shard)
        schema = file.schema_arrow
        image_column = find_image_column(schema)
        names = [name for name in schema.names if name != image_column]
        if len(set(schema.names)) != len(schema.names):
            raise ShardError(f"{shard.uri} has two columns of one name: {schema.names}. Rename one.")
        columns = find_columns(schema)
        rows = read_rows(file, names, list(columns.values()), shard.uri, limits)
    except ShardError:
        raise
    except Exception as error:  # damage of every kind, and whatever the filesystem's library raises
        raise ShardError(
            f"{shard.uri} cannot be read as parquet ({type(error).__name__}: {str(error)[:300]}). "
            "Write it again, or remove it from the input."
        ) from error
    cut = 0 if most_rows is None else max(0, rows.num_rows - most_rows)
    rows = rows.slice(0, rows.num_rows - cut)
    common = (shard, rows, columns, limits, cut)
    if image_column:
        return ColumnShard(*common, file, image_column)
    file.close()
    return _open_beside(*common, fetcher)


def _open_beside(
    shard: Shard, rows: pa.Table, columns: dict[str, str], limits: Limits, cut: int, fetcher: Fetcher
) -> OpenShard:
    stem = shard.path.removesuffix(".parquet")
    kind: Callable[..., OpenShard] | None = None
    try:
        is_tar, start = _tar_at(shard, stem + ".tar")
        if is_tar:
            kind = partial(TarShard, start=start)
        elif shard.fs.isdir(stem):
            kind = FolderShard
        elif shard.fs.isfile(stem + ".tfrecord"):
            kind = TFRecordBeside
        if kind and "key" not in columns:
            raise ShardError(
                f"{shard.uri} has images beside it but no `key` column to find them by; add one."
            )
        if kind:
            return kind(shard, rows, columns, limits, cut)
    except ShardError:
        raise
    except Exception as error:
        raise ShardError(f"The images beside {shard.uri} cannot be read: {error}.") from error
    if "url" in columns:
        return UrlShard(shard, rows, columns, limits, cut, fetcher)
    raise ShardError(
        f"{shard.uri} leads to no images: it has the columns {rows.column_names} and neither a tar nor a "
        f"folder beside it. Expected a binary column ({', '.join(IMAGE_COLUMNS)}), a `.tar`, a folder or a "
        "`.tfrecord` of the same name, or a `url` column."
    )


def _open_parquet(shard: Shard) -> pq.ParquetFile:
    """Opens the parquet; one without images is small, and comes whole in one request."""
    start = read_start(shard.fs, shard.path, _START_BYTES)
    if start and start.is_all:
        return pq.ParquetFile(pa.BufferReader(start.data))
    return pq.ParquetFile(shard.fs.open(shard.path, "rb"), buffer_size=_START_BYTES)


def _tar_at(shard: Shard, path: str) -> tuple[bool, Start | None]:
    """Whether there is a tar, and its first bytes where those say it."""
    try:
        start = read_start(shard.fs, path, _START_BYTES)
    except FileNotFoundError:
        return False, None
    return start is not None or shard.fs.isfile(path), start
