"""The four places where a shard's images may be: in a column, in a tar, in a folder, or behind URLs."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher, is_below, real_path
from boring_assets.engine.inputs.tar import BlockReader, Start, read_members
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import ShardError

IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png webp gif bmp tif tiff avif heic heif jp2 j2k ico ppm pgm pnm tga".split()  # noqa: SIM905
)
# Images of a column that are in memory at once; each may be as large as the limit.
_BATCH = 16

Image = tuple[int, bytes | Failure]
Item = TypeVar("Item")


@dataclass
class OpenShard(ABC):
    """A shard whose rows are known; its images are read once, in the order that reads fastest.

    Attributes:
        shard: Which one.
        rows: Every column but the image bytes, one row a sample; of a stream, once all its images are read.
        columns: Which of the shard's columns is its `url`, `key` and `caption`; absent where it has none.
        limits: The most that one image may cost.
        cut: Rows at the shard's end that were left out on request.
        streamed: Whether `rows`, `columns` and `cut` are known only when all images are read.
    """

    streamed: ClassVar[bool] = False

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

    def too_large(self, size: int) -> Failure | None:
        """Why an image of so many bytes is not read, or None."""
        if size <= self.limits.bytes:
            return None
        return Failure(Reason.TOO_LARGE, f"{size} bytes; the limit is {self.limits.bytes}")

    def absent(self, row: int, detail: str) -> Failure:
        """Why a row has no image: img2dataset's own account of it, else `missing_image`."""
        names = self.rows.column_names
        status = self.rows["status"][row].as_py() if "status" in names else None
        if status in (None, "success"):
            return Failure(Reason.MISSING_IMAGE, detail)
        message = self.rows["error_message"][row].as_py() if "error_message" in names else None
        return Failure(Reason.NOT_DOWNLOADED, f"{status}: {message}" if message else str(status))


@dataclass
class ColumnShard(OpenShard):
    """Image bytes in a column of the parquet itself."""

    file: pq.ParquetFile
    image_column: str

    def images(self) -> Iterator[Image]:  # noqa: D102
        row, total = 0, self.rows.num_rows
        columns = [self.image_column]
        for batch in self.file.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")  # keeps the struct's own nulls
            for value in values:
                if row == total:
                    return
                yield row, self._image(row, value.as_buffer())
                row += 1
        if row < total:
            raise ShardError(
                f"{self.shard.uri} has {total} rows, but its column {self.image_column} ends after {row}. "
                "Write it again, or remove it from the input."
            )

    def _image(self, row: int, data: pa.Buffer | None) -> bytes | Failure:
        if data is None:
            return self.absent(row, "the image column is null here")
        return self.too_large(data.size) or data.to_pybytes()

    def close(self) -> None:  # noqa: D102
        self.file.close()


@dataclass
class TarShard(OpenShard):
    """A tar beside the parquet, with members `{key}.{suffix}`."""

    start: Start | None = None
    reader: BlockReader = field(init=False)

    def __post_init__(self) -> None:
        path = self.shard.path.removesuffix(".parquet") + ".tar"
        self.reader = BlockReader(self.shard.fs, path, start=self.start)

    def images(self) -> Iterator[Image]:  # noqa: D102
        uri = self.shard.uri.removesuffix(".parquet") + ".tar"
        waiting = rows_by_key(self)
        for member in read_members(self.reader, uri, self.limits.bytes):
            row = waiting.take(member.name)
            if row is None:
                continue
            yield row, self.too_large(member.size) or member.data or b""
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
            if refusal := self.too_large(info["size"]) or self._leads_outside(path, info):
                yield row, refusal
            else:
                wanted[path] = row
        for row in waiting.left():
            yield row, self.absent(row, "the folder has no image of this key")
        yield from _in_parallel(wanted.items(), self._read, 16)

    def _leads_outside(self, path: str, info: dict[str, Any]) -> Failure | None:
        fs, root = self.shard.fs, self.shard.root
        target = real_path(fs, path) if info.get("islink") else path
        if target != path and not is_below(target, real_path(fs, root)):
            return Failure(Reason.NOT_ALLOWED, "a link that leads out of the input")
        if info["type"] != "file" and not fs.isfile(target):  # a pipe would be waited for
            return Failure(Reason.NOT_ALLOWED, "it is no regular file")
        return None

    def _read(self, item: tuple[str, int]) -> Image:
        path, row = item
        try:
            return row, self.shard.fs.cat_file(path)
        except OSError as error:
            # A storage that fails is no fault of the image: it costs the shard, which is then done again.
            if not isinstance(error, FileNotFoundError) and not isinstance(self.shard.fs, LocalFileSystem):
                raise
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
