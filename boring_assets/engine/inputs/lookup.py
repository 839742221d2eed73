"""Reads single images of a shard, without reading the whole shard for each."""

import tarfile
from collections.abc import Callable
from functools import cached_property

from boring_assets.engine.inputs.image_column import ColumnShard
from boring_assets.engine.inputs.layouts import FolderShard, OpenShard, TarShard, UrlShard, rows_by_key
from boring_assets.engine.inputs.tar import open_tar, read_members
from boring_assets.engine.inputs.tfrecord import TFRecordShard
from boring_assets.engine.inputs.webdataset import TarRows, WebdatasetShard
from boring_assets.engine.samples import Failure, Reason

_Place = tuple[int, int]
"""Offset and size of an image in a tar."""


def _is_regular(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


class Lookup:
    """Reads images of one open shard; the first image of a tar costs reading the headers of all of it."""

    def __init__(self, opened: OpenShard) -> None:
        self._opened = opened

    @property
    def rows(self) -> int:
        """Number of rows of the shard."""
        if isinstance(self._opened, WebdatasetShard):
            return len(self._tar.keys)
        return int(self._opened.rows.num_rows)

    @cached_property
    def _keys(self) -> list[str | None]:
        tar = isinstance(self._opened, WebdatasetShard)
        return list(self._tar.keys) if tar else self._opened.column("key")

    @cached_property
    def keys(self) -> dict[str, int]:
        """The first row of each key."""
        return {key: row for row, key in reversed(list(enumerate(self._keys))) if key is not None}

    def key(self, row: int) -> str | None:
        """Returns the key of a row; None if it has none, or if there is no such row."""
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def read(self, row: int) -> bytes | Failure:
        """Returns the encoded image of a row, or why there is none.

        Args:
            row: Its number in the shard, from 0.
        """
        opened = self._opened
        try:
            if not isinstance(opened, TFRecordShard) and not 0 <= row < self.rows:
                return Failure(Reason.MISSING_IMAGE, f"the shard has no row {row}")
            if isinstance(opened, WebdatasetShard | TarShard):
                return self._from_tar(row)
            if isinstance(opened, ColumnShard):
                return opened.read(row)
            if isinstance(opened, FolderShard):
                return self._from_folder(row)
            if not isinstance(opened, UrlShard):
                return Failure(Reason.FETCH_ERROR, f"no single image can be read of {opened.shard.uri}")
            return opened.read(row)
        # Filesystems raise errors of their libraries, and a damaged tar nearly anything.
        except Exception as error:
            return Failure(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}"[:500])

    def close(self) -> None:
        """Closes the shard."""
        self._opened.close()

    @property
    def _tar_path(self) -> str:
        opened = self._opened
        path = opened.shard.path
        return path.removesuffix(".parquet") + ".tar" if isinstance(opened, TarShard) else path

    def _from_tar(self, row: int) -> bytes | Failure:
        opened, why = self._opened, "the tar has no image of this key"
        if row not in self._places:
            # For a tar without a parquet no columns were read that could give the reason.
            return Failure(Reason.MISSING_IMAGE, why) if opened.streamed else opened.absent(row, why)
        start, size = self._places[row]
        if size < 0:
            return Failure(Reason.MISSING_IMAGE, "the member is a link or a sparse file, which is not read")
        if refusal := opened.too_large(size):
            return refusal
        if not self._tar_path.endswith(".tar"):
            return self._from_compressed(row)
        return opened.shard.fs.cat_file(self._tar_path, start=start, end=start + size) if size else b""

    def _from_compressed(self, row: int) -> bytes | Failure:
        """Returns an image of a compressed tar, which has to be read up to the image."""
        opened, row_of = self._opened, self._row_finder()
        reader = open_tar(opened.shard.fs, self._tar_path)
        try:
            for member in read_members(reader, opened.shard.uri, opened.limits.bytes):
                if row_of(member.name) == row:
                    return opened.content(row, member)
        finally:
            reader.close()
        return Failure(Reason.MISSING_IMAGE, "the tar has no image of this key")

    def _row_finder(self) -> Callable[[str], int | None]:
        """Finds the row of each member, given in the tar's order."""
        if isinstance(self._opened, WebdatasetShard):
            rows = TarRows(self._opened.shard.columns)
            return lambda name: rows.add(name)[0]
        return rows_by_key(self._opened).take

    @cached_property
    def _tar(self) -> TarRows:
        """The rows of a tar without a parquet."""
        rows = TarRows(self._opened.shard.columns)
        for name, _ in self._members:
            rows.add(name)
        rows.finish()
        return rows

    @cached_property
    def _places(self) -> dict[int, _Place]:
        """Place of each row's image in the tar."""
        row_of = self._row_finder()
        found = ((row_of(name), place) for name, place in self._members)
        return {row: place for row, place in found if row is not None}

    @cached_property
    def _members(self) -> list[tuple[str, _Place]]:
        """Name and place of each file in the tar."""
        fs, path = self._opened.shard.fs, self._tar_path
        if not path.endswith(".tar"):
            reader = open_tar(fs, path)
            try:
                return [
                    (member.name, (0, -1 if member.problem else member.size))
                    for member in read_members(reader, path, 0)
                ]
            finally:
                reader.close()
        with (
            fs.open(path, "rb") as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as tar,
        ):
            return [
                (member.name, (member.offset_data, member.size if _is_regular(member) else -1))
                for member in tar
                if member.isreg() or member.islnk() or member.issym()
            ]

    def _from_folder(self, row: int) -> bytes | Failure:
        if row not in self._files:
            return self._opened.absent(row, "the folder has no image of this key")
        path, size = self._files[row]
        return self._opened.too_large(size) or self._opened.shard.fs.cat_file(path)

    @cached_property
    def _files(self) -> dict[int, tuple[str, int]]:
        """Path and size of each row's image in the folder."""
        shard = self._opened.shard
        waiting = rows_by_key(self._opened)
        folder = shard.path.removesuffix(".parquet")
        listed = shard.fs.find(folder, detail=True)
        taken = (
            (waiting.take(path.removeprefix(folder + "/")), path, info["size"])
            for path, info in sorted(listed.items())
        )
        return {row: (path, size) for row, path, size in taken if row is not None}
