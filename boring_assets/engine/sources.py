"""A shard's rows, and where each image is: in a column, in a tar, in a folder, or behind a URL."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from boring_assets.engine.decode import Limits
from boring_assets.engine.fetch import Fetcher
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.engine.tar import BlockReader, read_members
from boring_assets.errors import ShardError

# img2dataset names the bytes column after the encode format; others call it `image`.
IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
IMAGE_SUFFIXES = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "avif",
        "heic",
        "heif",
        "jp2",
        "j2k",
        "ico",
        "ppm",
        "pgm",
        "pnm",
        "tga",
    ]
)
# Names of the three columns that the output always has, in the order of preference, lower case.
ALIASES = {
    "url": ("url", "image_url", "image_link"),
    "key": ("key", "__key__"),
    "caption": ("caption", "text", "alt_text", "alt"),
}

Image = tuple[int, bytes | Failure]
Item = TypeVar("Item")


@dataclass
class OpenShard(ABC):
    """A shard whose rows are known; its images are read once, in the order that reads fastest.

    Attributes:
        shard: Which one.
        rows: Every column but the image bytes, one row a sample.
        columns: Which of the shard's columns is its `url`, `key` and `caption`; absent where it has none.
        limits: The most that one image may cost.
        cut: Rows at the shard's end that were left out on request.
    """

    shard: Shard
    rows: pa.Table
    columns: dict[str, str]
    limits: Limits
    cut: int

    @abstractmethod
    def images(self) -> Iterator[Image]:
        """Yields `(row, bytes or failure)` exactly once for each row, in any order."""

    def close(self) -> None:  # noqa: B027  (most kinds hold nothing open)
        """Lets go of files and threads."""

    def column(self, name: str) -> list[str | None]:
        """The values of `url`, `key` or `caption`, or as many None."""
        if name not in self.columns:
            return [None] * self.rows.num_rows
        values = self.rows[self.columns[name]].to_pylist()
        return [None if value is None else str(value) for value in values]

    def absent(self, row: int, detail: str) -> Failure:
        """Why a row has no image: img2dataset's own account of it, else `missing_image`."""
        names = self.rows.column_names
        status = self.rows["status"][row].as_py() if "status" in names else None
        if status in (None, "success"):
            return Failure(Reason.MISSING_IMAGE, detail)
        message = self.rows["error_message"][row].as_py() if "error_message" in names else None
        return Failure(Reason.NOT_DOWNLOADED, f"{status}: {message}" if message else str(status))


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
        ShardError: The parquet cannot be read, or holds nothing that leads to images.
    """
    try:
        file = pq.ParquetFile(shard.fs.open(shard.path, "rb"), buffer_size=8 * 2**20)
        schema = file.schema_arrow
        image_column = _find_image_column(schema)
        names = [name for name in schema.names if name != image_column]
        if len(set(schema.names)) != len(schema.names):
            raise ShardError(f"{shard.uri} has two columns of one name: {schema.names}. Rename one.")
        rows = _without_views(file.read(columns=names))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(
            f"{shard.uri} cannot be read as parquet ({type(error).__name__}: {str(error)[:300]}). "
            "Write it again, or remove it from the input."
        ) from error
    cut = 0 if most_rows is None else max(0, rows.num_rows - most_rows)
    rows = rows.slice(0, rows.num_rows - cut)
    common = (shard, rows, _find_columns(schema), limits, cut)
    if image_column:
        return ColumnShard(*common, file, image_column)
    file.close()
    return _open_beside(*common, fetcher)


def _open_beside(
    shard: Shard, rows: pa.Table, columns: dict[str, str], limits: Limits, cut: int, fetcher: Fetcher
) -> OpenShard:
    stem = shard.path.removesuffix(".parquet")
    kind: type[TarShard] | type[FolderShard] | None = None
    try:
        if shard.fs.isfile(stem + ".tar"):
            kind = TarShard
        elif shard.fs.isdir(stem):
            kind = FolderShard
        if kind and "key" not in columns:
            raise ShardError(
                f"{shard.uri} has images beside it but no `key` column to find them by; add one."
            )
        if kind:
            return kind(shard, rows, columns, limits, cut)
    except OSError as error:
        raise ShardError(f"The images beside {shard.uri} cannot be read: {error}.") from error
    if "url" in columns:
        return UrlShard(shard, rows, columns, limits, cut, fetcher)
    raise ShardError(
        f"{shard.uri} leads to no images: it has the columns {rows.column_names} and neither a tar nor a "
        f"folder beside it. Expected a binary column ({', '.join(IMAGE_COLUMNS)}), a `.tar` or a folder of "
        "the same name, or a `url` column."
    )


def _without_views(rows: pa.Table) -> pa.Table:
    """Arrow has no way yet to pick rows of a view column; parquet itself knows no views."""
    for number, column in enumerate(rows.schema):
        if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
            plain = pa.large_string() if pa.types.is_string_view(column.type) else pa.large_binary()
            rows = rows.set_column(number, column.with_type(plain), rows[number].cast(plain))
    return rows


def _find_columns(schema: pa.Schema) -> dict[str, str]:
    lower = {name.lower(): name for name in reversed(schema.names)}
    found = {}
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in lower and not pa.types.is_nested(schema.field(lower[alias]).type):
                found[name] = lower[alias]
                break
    return found


def _find_image_column(schema: pa.Schema) -> str | None:
    """A binary column of a known name, else a Hugging Face image struct `{bytes, path}`."""
    for name in IMAGE_COLUMNS:
        if name in schema.names and _is_binary(schema.field(name).type):
            return name
    for column in schema:
        fields = {field.name: field.type for field in column.type} if pa.types.is_struct(column.type) else {}
        if "bytes" in fields and _is_binary(fields["bytes"]):
            return column.name
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


@dataclass
class ColumnShard(OpenShard):
    """Image bytes in a column of the parquet itself."""

    file: pq.ParquetFile
    image_column: str

    def images(self) -> Iterator[Image]:  # noqa: D102
        row, total = 0, self.rows.num_rows
        for batch in self.file.iter_batches(batch_size=64, columns=[self.image_column], use_threads=False):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")  # keeps the struct's own nulls
            for value in values:
                if row == total:
                    return
                data = value.as_py()
                yield row, self.absent(row, "the image column is null here") if data is None else data
                row += 1

    def close(self) -> None:  # noqa: D102
        self.file.close()


@dataclass
class TarShard(OpenShard):
    """A tar beside the parquet, with members `{key}.{suffix}`."""

    reader: BlockReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = BlockReader(self.shard.fs, self.shard.path.removesuffix(".parquet") + ".tar")

    def images(self) -> Iterator[Image]:  # noqa: D102
        uri = self.shard.uri.removesuffix(".parquet") + ".tar"
        waiting = rows_by_key(self)
        for member in read_members(self.reader, uri, self.limits.bytes):
            row = waiting.take(member.name)
            if row is None:
                continue
            if member.data is None:
                yield row, Failure(Reason.TOO_LARGE, f"{member.size} bytes; the limit is {self.limits.bytes}")
            else:
                yield row, member.data
        for row in waiting.left():
            yield row, self.absent(row, "the tar has no image of this key")

    def close(self) -> None:  # noqa: D102
        self.reader.close()


class _RowsByKey:
    """Which row an image file belongs to, by the key in its name; each row is given out once."""

    def __init__(self, keys: list[str | None]) -> None:
        self._keys = keys
        self._rows = {key: row for row, key in reversed(list(enumerate(keys))) if key is not None}
        self._taken: set[int] = set()

    def take(self, name: str) -> int | None:
        """The row of the file `name`, or None where it is no image, of no row, or a second one of a row."""
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() not in IMAGE_SUFFIXES:
            return None
        row = self._rows.get(stem)
        if row is None:
            row = self._rows.get(PurePosixPath(stem).name)
        if row is None or row in self._taken:
            return None
        self._taken.add(row)
        return row

    def left(self) -> Iterator[int]:
        """Rows that no file was found for."""
        return (row for row in range(len(self._keys)) if row not in self._taken)


def rows_by_key(opened: OpenShard) -> _RowsByKey:
    """Which row of a shard each image file belongs to."""
    return _RowsByKey(opened.column("key"))


@dataclass
class FolderShard(OpenShard):
    """A folder beside the parquet, with files `{key}.{suffix}`."""

    def images(self) -> Iterator[Image]:  # noqa: D102
        fs, folder = self.shard.fs, self.shard.path.removesuffix(".parquet")
        waiting = rows_by_key(self)
        wanted: dict[str, int] = {}
        for path, info in sorted(fs.find(folder, detail=True).items()):
            row = waiting.take(PurePosixPath(path).name)
            if row is None:
                continue
            if info["size"] > self.limits.bytes:
                yield (
                    row,
                    Failure(Reason.TOO_LARGE, f"{info['size']} bytes; the limit is {self.limits.bytes}"),
                )
            else:
                wanted[path] = row
        for row in waiting.left():
            yield row, self.absent(row, "the folder has no image of this key")
        yield from _in_parallel(wanted.items(), self._read, 16)

    def _read(self, item: tuple[str, int]) -> Image:
        path, row = item
        try:
            return row, self.shard.fs.cat_file(path)
        except OSError as error:
            return row, Failure(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}"[:500])


@dataclass
class UrlShard(OpenShard):
    """Images behind the URLs of the parquet; the last resort."""

    fetcher: Fetcher

    def images(self) -> Iterator[Image]:  # noqa: D102
        urls = enumerate(self.column("url"))
        yield from _in_parallel(urls, self._fetch, self.fetcher.parallel)

    def _fetch(self, item: tuple[int, str | None]) -> Image:
        row, url = item
        if not url:
            return row, self.absent(row, "the row has no URL")
        return row, self.fetcher.fetch(url, self.shard)


def _in_parallel(items: Iterable[Item], work: Callable[[Item], Image], threads: int) -> Iterator[Image]:
    """Results in order, with at most twice `threads` of them begun and not yet taken."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    pending: deque[Future[Image]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
