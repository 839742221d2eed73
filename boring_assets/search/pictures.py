"""The pictures behind search results, read from their source shards."""

import time
from collections import OrderedDict
from functools import lru_cache
from threading import Lock

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.decoding.pillow import check_formats
from boring_assets.engine.decoding.thumbnail import SIDE, thumbnail
from boring_assets.engine.inputs.lookup import Lookup
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import BoringError
from boring_assets.settings import Settings
from resources.source import ShardSource

PLACEHOLDER = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="224" height="224" viewBox="0 0 224 224">'
    b'<rect width="224" height="224" fill="#8884"/><path d="M72 72l80 80M152 72l-80 80" stroke="#888" '
    b'stroke-width="6"/></svg>'
)
"""Shown instead of a picture that cannot be read any more."""
_OPEN_SHARDS = 32
_THUMBNAILS = 4000
_SHARD_SECONDS = 60.0


def picture_limits(settings: Settings) -> Limits:
    """Returns the limits for one image."""
    formats = check_formats(settings.extra_image_formats)
    return Limits(settings.max_image_pixels, settings.max_image_bytes, extra_formats=formats)


class Pictures:
    """Reads pictures by partition and row, through the same sources as the engine. Threads may share it.

    Shards stay open for a minute and thumbnails stay in memory, some thousands of them.
    """

    def __init__(self, source: ShardSource, limits: Limits) -> None:
        self._source, self._limits = source, limits
        self._lock = Lock()
        self._shards: OrderedDict[str, tuple[float, Lookup]] = OrderedDict()
        self._small = lru_cache(_THUMBNAILS)(self._encoded)

    def thumbnail(
        self, partition: str, key: str | None, row: int, side: int | None = None
    ) -> bytes | Failure:
        """Returns a JPEG of a picture, or why there is none.

        Args:
            partition: Its partition key.
            key: Its key; None if the input has none.
            row: Its row in the partition's input shard.
            side: Longest side in pixels; None is a thumbnail, which is kept in memory.
        """
        make = self._small if side is None else self._encoded
        return make(partition, key, row, side or SIDE)

    def _encoded(self, partition: str, key: str | None, row: int, side: int) -> bytes | Failure:
        data = self.read(partition, key, row)
        return data if isinstance(data, Failure) else thumbnail(data, self._limits, side)

    def read(self, partition: str, key: str | None, row: int) -> bytes | Failure:
        """Returns the encoded picture from its shard, or why it cannot be read."""
        with self._lock:  # two threads must not use one file handle
            try:
                shard = self._open(partition)
                # A shard that was written again may have the key in another row.
                place = row if key is None or shard.key(row) == key else shard.keys.get(key)
            except BoringError as error:
                return Failure(Reason.MISSING_IMAGE, str(error))
            if place is None:
                return Failure(Reason.MISSING_IMAGE, "the source shard has no such key any more")
            return shard.read(place)

    def _open(self, partition: str) -> Lookup:
        opened, shard = self._shards.pop(partition, (0.0, None))
        if shard is not None and time.monotonic() - opened > _SHARD_SECONDS:
            shard.close()
            shard = None
        if shard is None:
            found = self._source.find([partition])[partition]
            if isinstance(found, BoringError):
                raise found
            opened = time.monotonic()
            shard = Lookup(open_shard(found, self._limits, self._source.fetcher()))
        self._shards[partition] = (opened, shard)
        if len(self._shards) > _OPEN_SHARDS:
            self._shards.popitem(last=False)[1][1].close()
        return shard


def open_pictures(settings: Settings) -> Pictures:
    """Returns the pictures of the input."""
    return Pictures(ShardSource.from_settings(settings), picture_limits(settings))
