"""Single images of a shard, by row, without reading the whole shard for each."""

import tarfile
from functools import cached_property
from pathlib import PurePosixPath

from boring_assets.engine.inputs.bare_tar import BareTarShard, makes_row, split
from boring_assets.engine.inputs.layouts import (
    IMAGE_SUFFIXES,
    ColumnShard,
    FolderShard,
    OpenShard,
    TarShard,
    UrlShard,
    rows_by_key,
)
from boring_assets.engine.inputs.tfrecord import TFRecordShard
from boring_assets.engine.samples import Failure, Reason


class Lookup:
    """Reads images of one open shard; the first look into a tar reads the headers of all of it."""

    def __init__(self, opened: OpenShard) -> None:
        self._opened = opened

    @property
    def rows(self) -> int:
        """How many rows the shard has."""
        if isinstance(self._opened, BareTarShard):
            return len(self._samples)
        return int(self._opened.rows.num_rows)

    @cached_property
    def _keys(self) -> list[str | None]:
        tar = isinstance(self._opened, BareTarShard)
        return list(self._samples) if tar else self._opened.column("key")

    @cached_property
    def keys(self) -> dict[str, int]:
        """The first row of each key."""
        return {key: row for row, key in reversed(list(enumerate(self._keys))) if key is not None}

    def key(self, row: int) -> str | None:
        """The key of a row; None where it has none, or where there is no such row."""
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def read(self, row: int) -> bytes | Failure:
        """The encoded image of a row.

        Args:
            row: Its number in the shard, from 0.

        Returns:
            The bytes, or why there are none.
        """
        opened = self._opened
        try:
            if not isinstance(opened, TFRecordShard) and not 0 <= row < self.rows:
                return Failure(Reason.MISSING_IMAGE, f"the shard has no row {row}")
            if isinstance(opened, BareTarShard):
                place = list(self._samples.values())[row]
                return self._part_of(opened.shard.path, *place) if place else self._none_in_tar(row)
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
            return self._none_in_tar(row)
        return self._part_of(shard.path.removesuffix(".parquet") + ".tar", *self._members[row])

    def _none_in_tar(self, row: int) -> Failure:
        why = "the tar has no image of this key"
        streamed = self._opened.streamed  # of which no columns were read that could say more
        return Failure(Reason.MISSING_IMAGE, why) if streamed else self._opened.absent(row, why)

    def _part_of(self, path: str, start: int, size: int) -> bytes | Failure:
        fs = self._opened.shard.fs
        return self._opened.too_large(size) or (
            fs.cat_file(path, start=start, end=start + size) if size else b""
        )

    @cached_property
    def _samples(self) -> dict[str, tuple[int, int] | None]:
        """Keys of a tar without parquet in the order of its rows; offset and size of each one's image."""
        shard = self._opened.shard
        found: dict[str, tuple[int, int] | None] = {}
        with shard.fs.open(shard.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, suffix = split(member.name)
                if member.isreg() and makes_row(suffix, member.size):
                    image = (member.offset_data, member.size) if suffix in IMAGE_SUFFIXES else None
                    found[key] = found.get(key) or image
        return found

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
        return self._opened.too_large(size) or self._opened.shard.fs.cat_file(path)

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
