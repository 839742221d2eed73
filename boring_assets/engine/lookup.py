"""Single images of a shard, by row, without reading the whole shard for each."""

import tarfile
from functools import cached_property
from pathlib import PurePosixPath

from boring_assets.engine.layouts import (
    ColumnShard,
    FolderShard,
    OpenShard,
    TarShard,
    UrlShard,
    rows_by_key,
)
from boring_assets.engine.samples import Failure, Reason


class Lookup:
    """Reads images of one open shard; the first look into a tar reads the headers of all of it."""

    def __init__(self, opened: OpenShard) -> None:
        self._opened = opened

    @property
    def rows(self) -> int:
        """How many rows the shard has."""
        return int(self._opened.rows.num_rows)

    @cached_property
    def keys(self) -> dict[str, int]:
        """The first row of each key."""
        keys = self._opened.column("key")
        return {key: row for row, key in reversed(list(enumerate(keys))) if key is not None}

    def read(self, row: int) -> bytes | Failure:
        """The encoded image of a row.

        Args:
            row: Its number in the shard, from 0.

        Returns:
            The bytes, or why there are none.
        """
        opened = self._opened
        if not 0 <= row < opened.rows.num_rows:
            return Failure(Reason.MISSING_IMAGE, f"the shard has no row {row}")
        try:
            if isinstance(opened, ColumnShard):
                return self._from_column(opened, row)
            if isinstance(opened, TarShard):
                return self._from_tar(row)
            if isinstance(opened, FolderShard):
                return self._from_folder(row)
            if not isinstance(opened, UrlShard):
                return Failure(Reason.FETCH_ERROR, f"no single image can be read of {opened.shard.uri}")
            url = opened.column("url")[row]
            return opened.fetcher.fetch(url, opened.shard) if url else opened.absent(row, "no URL")
        # Filesystems raise their libraries' own, and a damaged tar nearly anything.
        except Exception as error:
            return Failure(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}"[:500])

    def close(self) -> None:
        """Lets go of the shard."""
        self._opened.close()

    def _from_column(self, opened: ColumnShard, row: int) -> bytes | Failure:
        start = 0
        for group in range(opened.file.num_row_groups):
            count = opened.file.metadata.row_group(group).num_rows
            if row < start + count:
                value = opened.file.read_row_group(group, [opened.image_column]).column(0)[row - start]
                data = value.as_py()
                data = data.get("bytes") if isinstance(data, dict) else data
                return data or opened.absent(row, "the image column is null here")
            start += count
        return Failure(Reason.MISSING_IMAGE, f"the shard has no row {row}")

    def _from_tar(self, row: int) -> bytes | Failure:
        shard = self._opened.shard
        if row not in self._members:
            return self._opened.absent(row, "the tar has no image of this key")
        start, size = self._members[row]
        if size > self._opened.limits.bytes:
            return Failure(Reason.TOO_LARGE, f"{size} bytes; the limit is {self._opened.limits.bytes}")
        tar = shard.path.removesuffix(".parquet") + ".tar"
        data: bytes = shard.fs.cat_file(tar, start=start, end=start + size) if size else b""
        return data

    @cached_property
    def _members(self) -> dict[int, tuple[int, int]]:
        """Offset and size of each row's image in the tar."""
        shard = self._opened.shard
        found: dict[int, tuple[int, int]] = {}
        waiting = rows_by_key(self._opened)
        with (
            shard.fs.open(shard.path.removesuffix(".parquet") + ".tar", "rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                row = waiting.take(member.name) if member.isreg() else None
                if row is not None:
                    found[row] = (member.offset_data, member.size)
        return found

    def _from_folder(self, row: int) -> bytes | Failure:
        if row not in self._files:
            return self._opened.absent(row, "the folder has no image of this key")
        path, size = self._files[row]
        if size > self._opened.limits.bytes:
            return Failure(Reason.TOO_LARGE, f"{size} bytes; the limit is {self._opened.limits.bytes}")
        data: bytes = self._opened.shard.fs.cat_file(path)
        return data

    @cached_property
    def _files(self) -> dict[int, tuple[str, int]]:
        """Path and size of each row's image in the folder."""
        shard = self._opened.shard
        waiting = rows_by_key(self._opened)
        listed = shard.fs.find(shard.path.removesuffix(".parquet"), detail=True)
        taken = (
            (waiting.take(PurePosixPath(path).name), path, info["size"])
            for path, info in sorted(listed.items())
        )
        return {row: (path, size) for row, path, size in taken if row is not None}
