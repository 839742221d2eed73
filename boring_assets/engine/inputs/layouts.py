"""Open shards: the base class, and shards with images beside a parquet or behind its URLs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.blocks import BlockReader, Start
from boring_assets.engine.inputs.columns import missing_column
from boring_assets.engine.inputs.fetch import Fetcher, is_below, real_path
from boring_assets.engine.inputs.image_values import START_BYTES, decode_base64, is_encoded_text
from boring_assets.engine.inputs.read_ahead import in_parallel
from boring_assets.engine.inputs.tar import Member, open_tar, read_members, webdataset_name
from boring_assets.engine.inputs.texts import number_in, to_text
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import ShardError

IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png webp gif bmp tif tiff avif heic heif jp2 j2k ico ppm pgm pnm pbm tga jxl".split()  # noqa: SIM905
)
EMPTY = "the image is empty (0 bytes)"
Image = tuple[int, bytes | Failure]


@dataclass
class OpenShard(ABC):
    """An open shard, whose images are read once, in the order that is fastest to read.

    Attributes:
        rows: Every column except images, one row a sample.
        columns: Names of the columns with its `url`, `key` and `caption`, if it has them.
        cut: Rows at the shard's end that were left out by `max_rows`.
        notes: Messages for the run's log about how the shard was read.
        only_rows: The rows whose images are wanted; None is all.
        streamed: Whether `rows`, `columns` and `cut` are known only when all images are read.
    """

    streamed: ClassVar[bool] = False

    shard: Shard
    limits: Limits
    rows: pa.Table = field(default_factory=lambda: pa.table({}), kw_only=True)
    columns: dict[str, str] = field(default_factory=dict, kw_only=True)
    cut: int = field(default=0, kw_only=True)
    notes: list[str] = field(default_factory=list, init=False)
    only_rows: frozenset[int] | None = field(default=None, init=False)

    @abstractmethod
    def images(self) -> Iterator[Image]:
        """Yields `(row, bytes or failure)` exactly once for each wanted row, in any order.

        Other rows may be among them if skipping them saves nothing.
        """

    def read(self, row: int) -> bytes | Failure:
        """Returns the image of one row, without reading the others."""
        return Failure(Reason.FETCH_ERROR, f"no single image can be read of {self.shard.uri}")

    def wants(self, row: int) -> bool:
        """Returns whether a row's image is wanted."""
        return self.only_rows is None or row in self.only_rows

    def close(self) -> None:  # noqa: B027  (most kinds hold nothing open)
        """Closes files and ends threads."""

    def column(self, name: str) -> list[str | None]:
        """Returns the values of `url`, `key` or `caption`; None for each row without them."""
        if name not in self.columns:
            return [None] * self.rows.num_rows
        values = self.rows[self.columns[name]].to_pylist()
        return [None if value is None else str(value) for value in values]

    def from_bytes(self, row: int, data: bytes | pa.Buffer) -> bytes | Failure:
        """Returns an image that is there as bytes, or as base64 in bytes."""
        if is_encoded_text(bytes(data[:START_BYTES])):
            return self.from_text(row, data)
        return self.limits.too_large(len(data)) or bytes(data)

    def from_text(self, row: int, text: bytes | pa.Buffer) -> bytes | Failure:
        """Returns an image that is there as base64."""
        if refusal := self.limits.too_large(len(text) * 3 // 4 - 100):
            return refusal
        image = decode_base64(bytes(text))
        if image is None:
            return Failure(
                Reason.DECODE_ERROR,
                f"the text is not base64: it begins with {bytes(text[:16])!r}. "
                "For paths or URLs set BORING_URL_COLUMN.",
            )
        return self.limits.too_large(len(image)) or image or self.absent(row, EMPTY)

    def content(self, row: int, member: Member) -> bytes | Failure:
        """Returns the image of a member of a tar."""
        if member.problem:
            return self.absent(row, member.problem)
        return self.limits.too_large(member.size) or member.data or b""

    def absent(self, row: int, detail: str) -> Failure:
        """Returns the failure of a row without image: img2dataset's status, else `missing_image`."""
        names = self.rows.column_names
        status = self.rows["status"][row].as_py() if "status" in names else None
        status = to_text(status) if isinstance(status, bytes) else status
        if not isinstance(status, str) or not status.startswith("failed"):  # a column of another meaning
            return Failure(Reason.MISSING_IMAGE, detail)
        message = self.rows["error_message"][row].as_py() if "error_message" in names else None
        return Failure(Reason.NOT_DOWNLOADED, f"{status}: {message}" if message else status)


@dataclass
class TarShard(OpenShard):
    """A tar beside the parquet, with members `{key}.{suffix}`."""

    start: Start | None = None

    def __post_init__(self) -> None:
        self._reader: BlockReader = open_tar(self.shard.fs, self.shard.beside(".tar").path, self.start)

    def images(self) -> Iterator[Image]:  # noqa: D102
        uri = self.shard.beside(".tar").uri
        waiting = RowsByKey(self)
        for member in read_members(self._reader, uri, self.limits.bytes):
            row = waiting.take(member.name)
            if row is not None:
                yield row, self.content(row, member)
        self.notes += waiting.finish("tar", uri)
        for row in waiting.left():
            yield row, self.absent(row, "the tar has no image of this key")

    def close(self) -> None:  # noqa: D102
        self._reader.close()


class RowsByKey:
    """Finds the row of an image file by the key in its name; each row is returned once."""

    def __init__(self, opened: OpenShard) -> None:
        self._keys, self._extension = opened.column("key"), opened.shard.columns.image
        self._rows = {key: row for row, key in reversed(list(enumerate(self._keys))) if key is not None}
        self._by_number: dict[int, int | None] = {}
        for key, row in self._rows.items():
            number = number_in(key)
            if number is not None:  # ambiguous: two keys with one number
                self._by_number[number] = None if number in self._by_number else row
        self._taken: set[int] = set()
        self._extensions: set[str] = set()
        self.without_row, self.second = 0, 0

    def take(self, name: str) -> int | None:
        """Returns the row of a file; None if it is not an image, or its row has one, or it has no row."""
        stem, _, suffix = name.rpartition(".")
        if self._extension:
            stem, suffix = webdataset_name(name)
            self._extensions.add(suffix)
            if suffix != self._extension.lower():
                return None
        elif suffix.lower() not in IMAGE_SUFFIXES:
            return None
        row = self._rows.get(stem)
        if row is None:
            row = self.find(PurePosixPath(stem).name)
        if row is None:  # keys that are names of files
            row = self._rows.get(name, self._rows.get(PurePosixPath(name).name))
        if row is None and not PurePosixPath(name).name.startswith("."):
            self.without_row += 1
        self.second += row in self._taken
        if row is None or row in self._taken:
            return None
        self._taken.add(row)
        return row

    def find(self, key: str) -> int | None:
        """Returns the row of a key; numbers match by value."""
        row = self._rows.get(key)
        number = number_in(key) if row is None else None
        return row if number is None else self._by_number.get(number)

    def finish(self, what: str, uri: str) -> list[str]:
        """Returns messages about images that belong to no row, or to one that has an image already.

        Raises:
            ShardError: There were files, but none with the extension that the settings name.
        """
        if self._extension and self._extensions and self._extension.lower() not in self._extensions:
            raise ShardError(missing_column(self._extension, "image", self._extensions, uri, "extension"))
        texts = {
            "have no row in the parquet": self.without_row,
            "are not the first one of their row": self.second,
        }
        return [
            f"Images of the {what} that {text}, and are not embedded: {count}."
            for text, count in texts.items()
            if count
        ]

    def left(self) -> Iterator[int]:
        """Returns the rows without a file."""
        return (row for row in range(len(self._keys)) if row not in self._taken)


@dataclass
class FolderShard(OpenShard):
    """A folder beside the parquet, with files `{key}.{suffix}`."""

    @cached_property
    def _files(self) -> dict[int, tuple[str, dict[str, Any]]]:
        """The file with the image of each row: its path, and what the filesystem says of it."""
        folder = self.shard.beside("").path
        waiting = RowsByKey(self)
        files = {}
        for path, info in sorted(self.shard.fs.find(folder, detail=True).items()):
            row = waiting.take(path.removeprefix(folder + "/"))
            if row is not None:
                files[row] = path, info
        self.notes += waiting.finish("folder", folder)
        return files

    def images(self) -> Iterator[Image]:  # noqa: D102
        wanted = []
        without_file = (row for row in range(self.rows.num_rows) if row not in self._files)
        for row in filter(self.wants, (*self._files, *without_file)):
            if refusal := self._refuse(row):
                yield row, refusal
            else:
                wanted.append((self._files[row][0], row))
        yield from in_parallel(wanted, self._read, 16)

    def read(self, row: int) -> bytes | Failure:  # noqa: D102
        return self._refuse(row) or self._read((self._files[row][0], row))[1]

    def _refuse(self, row: int) -> Failure | None:
        """Returns why a row's file is not read, if it is not."""
        if row not in self._files:
            return self.absent(row, "the folder has no image of this key")
        fs, root = self.shard.fs, self.shard.root
        path, info = self._files[row]
        target = real_path(fs, path) if info.get("islink") else path
        if refusal := self.limits.too_large(info["size"]):
            return refusal
        if target != path and not is_below(target, real_path(fs, root)):
            return Failure(Reason.NOT_ALLOWED, "a link to outside of the input")
        if info["type"] != "file" and not fs.isfile(target):  # reading a pipe would block
            return Failure(Reason.NOT_ALLOWED, "it is not a regular file")
        return None

    def _read(self, item: tuple[str, int]) -> Image:
        path, row = item
        try:
            return row, self.shard.fs.cat_file(path)
        except OSError as error:
            # If the storage fails, the shard fails and is read again later.
            if not isinstance(error, FileNotFoundError) and not isinstance(self.shard.fs, LocalFileSystem):
                raise
            return row, Failure(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}"[:500])


@dataclass
class UrlShard(OpenShard):
    """Images behind the URLs of the parquet, if they are nowhere else."""

    fetcher: Fetcher

    def __post_init__(self) -> None:
        self._urls = self.column("url")

    def images(self) -> Iterator[Image]:  # noqa: D102
        rows = filter(self.wants, range(self.rows.num_rows))
        yield from in_parallel(rows, lambda row: (row, self.read(row)), self.fetcher.parallel)

    def read(self, row: int) -> bytes | Failure:  # noqa: D102
        url = self._urls[row]
        if not url:
            return self.absent(row, "the row has no URL")
        if url[:5].lower() == "data:":
            return self.from_text(row, url.encode())
        return self.fetcher.fetch(url, self.shard)


@dataclass
class NullShard(OpenShard):
    """A column of images that are all null, which then has no type."""

    def images(self) -> Iterator[Image]:  # noqa: D102
        for row in range(self.rows.num_rows):
            yield row, self.absent(row, "the image column is null here")
