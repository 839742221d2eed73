"""Opens a shard, and finds out where its images are: in a column, a tar, a folder, or behind URLs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.blocks import Start, read_start
from boring_assets.engine.inputs.columns import (
    ALIASES,
    IMAGE_COLUMNS,
    ImageColumns,
    find_image_column,
    missing_column,
    path_field,
    with_paths,
    with_texts,
    without_data_urls,
    without_images,
)
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.image_column import ColumnShard
from boring_assets.engine.inputs.layouts import FolderShard, NullShard, OpenShard, TarShard, UrlShard
from boring_assets.engine.inputs.read_ahead import OBJECT_BLOCK, RemoteFile
from boring_assets.engine.inputs.rows import read_rows
from boring_assets.engine.inputs.tfrecord import TFRecordBeside, TFRecordShard
from boring_assets.engine.inputs.webdataset import WebdatasetShard
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst")


def open_shard(shard: Shard, limits: Limits, fetcher: Fetcher, max_rows: int | None = None) -> OpenShard:
    """Opens a shard, or its first `max_rows` rows, and finds out where its images are. The caller closes it.

    Raises:
        ShardError: The file cannot be read, exceeds the limits, or names no images.
    """
    if not shard.path.endswith(".parquet"):
        is_tar = shard.path.endswith((".tar", *COMPRESSED_TARS))
        return (WebdatasetShard if is_tar else TFRecordShard)(shard, limits, max_rows=max_rows)
    try:
        file, remote_size = _open_parquet(shard)
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise ShardError(f"{shard.uri} has two columns of one name: {names}. Rename one.")
        images = find_image_column(file, shard.columns, shard.uri)
        rows, columns = _read_columns(file, images, shard, limits, remote_size)
    except ShardError:
        raise
    except Exception as error:  # any damage, and any error of the filesystem's library
        raise unreadable(shard, error, "cannot be read as parquet") from error
    cut = 0 if max_rows is None else max(0, rows.num_rows - max_rows)
    found = {"rows": rows.slice(0, rows.num_rows - cut), "columns": columns, "cut": cut}
    if images.column:
        opened: OpenShard = ColumnShard(shard, limits, file, images.column, fetcher, remote_size, **found)
    else:
        schema = file.schema_arrow
        file.close()
        opened = _open_beside(shard, limits, fetcher, found, schema, images.hint(schema))
    opened.rows = without_data_urls(opened.rows, columns)
    opened.notes += images.notes(shard.columns.keep_images)
    return opened


def unreadable(shard: Shard, error: Exception, what: str = "or its images cannot be read") -> ShardError:
    """Returns the error of one shard for what a library has raised: damage, or a failure of the storage."""
    if isinstance(error, ShardError):
        return error
    detail = f"{type(error).__name__}: {str(error)[:300]}"
    fix = "Check that it is there and may be read, and try it again."
    if "decrypt" in detail.lower():
        fix = "It is encrypted: write it without encryption."
    elif isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None):
        fix = "Write it again, or remove it from the input."  # both are pyarrow's
    found = ShardError(f"{shard.uri} {what} ({detail}). {fix}")
    found.__cause__ = error
    return found


def _read_columns(
    file: pq.ParquetFile, images: ImageColumns, shard: Shard, limits: Limits, remote_size: int
) -> tuple[pa.Table, dict[str, str]]:
    """Returns every column except images, and which of them are the URL, key and caption."""
    keep = shard.columns.keep_images
    left_out = {images.column} | (set() if keep else images.others)
    names = [name for name in file.schema_arrow.names if name not in left_out]
    paths = path_field(file.schema_arrow, images.column)
    again = partial(_open_remote, shard, remote_size, file.metadata) if remote_size else None
    rows = read_rows(file, [*names, *paths], shard.uri, limits, again)
    if paths:
        rows = with_paths(rows, images.column)
    rows, columns = with_texts(rows, shard.columns, shard.uri)
    rows, found = without_images(rows, columns, keep=keep)
    images.others |= found
    return rows, columns


def _open_beside(
    shard: Shard, limits: Limits, fetcher: Fetcher, found: dict[str, Any], schema: pa.Schema, hint: str
) -> OpenShard:
    stem, columns = shard.beside("").path, found["columns"]
    kind: Callable[..., OpenShard] | None = None
    try:
        is_tar, start = _tar_at(shard, stem + ".tar")
        if is_tar:
            kind = partial(TarShard, start=start)
        elif shard.fs.isdir(stem) and not _urls_lead_into(stem, found["rows"], columns):
            kind = FolderShard
        elif shard.fs.isfile(stem + ".tfrecord"):
            kind = TFRecordBeside
        if kind and "key" not in columns:
            raise ShardError(
                f"{shard.uri} has images beside it but no `key` column to find them by. Name one of its "
                f"columns with BORING_KEY_COLUMN: {', '.join(schema.names)}."
            )
        if kind:
            return kind(shard, limits, **found)
    except ShardError:
        raise
    except Exception as error:
        raise ShardError(f"The images beside {shard.uri} cannot be read: {error}.") from error
    if shard.columns.image:
        raise ShardError(missing_column(shard.columns.image, "image", schema.names, shard.uri))
    for ending in COMPRESSED_TARS:
        if shard.fs.isfile(stem + ending):
            raise ShardError(
                f"The images of {shard.uri} are in a compressed tar beside it, which is not read with a "
                f"parquet. Decompress {stem}{ending}, or move it to another folder: there it is a shard."
            )
    if "url" in columns:
        return UrlShard(shard, limits, fetcher, **found)
    if any(pa.types.is_null(field.type) and field.name.lower() in IMAGE_COLUMNS for field in schema):
        return NullShard(shard, limits, **found)
    for field in schema:
        if field.name.lower() in ALIASES["url"] and pa.types.is_nested(field.type):
            hint += (
                f" The column {field.name!r} holds several values a row: to take the first, set "
                f"BORING_URL_COLUMN={field.name}."
            )
    raise ShardError(
        f"{shard.uri} leads to no images: it has the columns {schema.names} and neither a tar nor a "
        f"folder beside it. Expected a binary column ({', '.join(IMAGE_COLUMNS)}), a `.tar`, a folder or a "
        f"`.tfrecord` of the same name, or a `url` column. To name a column, set BORING_IMAGE_COLUMN, or for "
        f"paths and URLs BORING_URL_COLUMN.{hint}"
    )


def _urls_lead_into(folder: str, rows: pa.Table, columns: dict[str, str]) -> bool:
    """Whether the first URL is a path into a folder: `images/a.jpg` of `images.parquet`."""
    urls = rows[columns["url"]].drop_null()[:1].to_pylist() if "url" in columns else []
    return any(
        f"/{folder.rpartition('/')[2]}/" in f"/{url}" and not url.lower().startswith(("http:", "https:"))
        for url in urls
    )


def _open_parquet(shard: Shard) -> tuple[pq.ParquetFile, int]:
    """Opens a parquet file. A small remote file, e.g. one without images, is read in one request.

    Returns:
        The file, and its size if it is remote and too large for that, else 0.
    """
    start = read_start(shard.fs, shard.path, OBJECT_BLOCK)
    if start is None:
        return pq.ParquetFile(shard.fs.open(shard.path, "rb"), buffer_size=OBJECT_BLOCK), 0
    if len(start.data) == start.size:
        return pq.ParquetFile(pa.BufferReader(start.data)), 0
    size = start.size or shard.fs.size(shard.path)
    return _open_remote(shard, size), size


def _open_remote(shard: Shard, size: int, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    file = RemoteFile(shard.fs, shard.path, size)
    return pq.ParquetFile(file, metadata=metadata, buffer_size=OBJECT_BLOCK)


def _tar_at(shard: Shard, path: str) -> tuple[bool, Start | None]:
    """Returns whether there is a tar, and its first bytes if they were read."""
    try:
        start = read_start(shard.fs, path, OBJECT_BLOCK)
    except FileNotFoundError:
        return False, None
    return start is not None or shard.fs.isfile(path), start
