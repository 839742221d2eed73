"""Reads single images of a shard, without reading the whole shard for each."""

from contextlib import closing
from functools import cached_property

from boring_assets.engine.inputs.layouts import OpenShard, RowsByKey, TarShard
from boring_assets.engine.inputs.tar import Member, open_tar, read_members
from boring_assets.engine.inputs.tfrecord import TFRecordShard
from boring_assets.engine.inputs.webdataset import TarRows, WebdatasetShard
from boring_assets.engine.samples import Failure, Reason


class Lookup:
    """Reads images of one open shard; the first image of a tar costs reading all of it."""

    def __init__(self, opened: OpenShard) -> None:
        self._opened = opened

    @cached_property
    def keys(self) -> dict[str, int]:
        """The first row of each key."""
        return {key: row for row, key in reversed(list(enumerate(self._keys))) if key is not None}

    def key(self, row: int) -> str | None:
        """Returns the key of a row; None if it has none, or if there is no such row."""
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def read(self, row: int) -> bytes | Failure:
        """Returns the encoded image of a row, or why there is none."""
        opened = self._opened
        try:
            if not isinstance(opened, TFRecordShard) and not 0 <= row < len(self._keys):
                return Failure(Reason.MISSING_IMAGE, f"the shard has no row {row}")
            tar = isinstance(opened, TarShard | WebdatasetShard)
            return self._read_from_tar(row) if tar else opened.read(row)
        # Filesystems raise errors of their libraries, and a damaged tar nearly anything.
        except Exception as error:
            return Failure(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}"[:500])

    def close(self) -> None:
        """Closes the shard."""
        self._opened.close()

    @cached_property
    def _keys(self) -> list[str | None]:
        if isinstance(self._opened, WebdatasetShard):
            return self._tar[0]
        return self._opened.column("key")

    @cached_property
    def _tar(self) -> tuple[list[str | None], dict[int, Member]]:
        """The key of each row of a tar without a parquet, and the member with the image of each row."""
        opened, path = self._opened, self._tar_path
        rows = TarRows(opened.shard.columns)
        beside = RowsByKey(opened) if isinstance(opened, TarShard) else None
        images: dict[int, Member] = {}
        with closing(open_tar(opened.shard.fs, path)) as reader:
            for member in read_members(reader, path, 0):
                row = beside.take(member.name) if beside else rows.add(member.name)[0]
                if row is not None:
                    images[row] = member
        rows.finish()
        return [*rows.keys], images

    @property
    def _tar_path(self) -> str:
        shard = self._opened.shard
        return shard.beside(".tar").path if isinstance(self._opened, TarShard) else shard.path

    def _read_from_tar(self, row: int) -> bytes | Failure:
        opened, why = self._opened, "the tar has no image of this key"
        member = self._tar[1].get(row)
        if member is None:
            # For a tar without a parquet no columns were read that could give the reason.
            return Failure(Reason.MISSING_IMAGE, why) if opened.streamed else opened.absent(row, why)
        if member.problem:
            return Failure(Reason.MISSING_IMAGE, member.problem)
        if refusal := opened.limits.too_large(member.size):
            return refusal
        fs, path, start = opened.shard.fs, self._tar_path, member.offset
        if path.endswith(".tar"):
            return fs.cat_file(path, start=start, end=start + member.size) if member.size else b""
        with closing(open_tar(fs, path)) as reader:  # compressed: it has to be read up to the image
            reader.skip(start)
            return reader.read(member.size)
