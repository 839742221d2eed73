"""The most that an image or a shard may cost, and how that is found out before it has cost more.

Input is not trusted. Most decoders take a time that grows with an image's pixels and bytes, which are
bounded beforehand. What is left are the scans of a JPEG, which are counted here, and the many small pieces
that a file may consist of, where `MeteredFile` stops Pillow between one piece and the next.
"""

import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from boring_assets.errors import SettingsError

# What image data sets are made of. Pillow reads some forty more, which few need and few look after.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Decoding a scan that says nothing, measured: colour, 9408 x 9408 pixels, and 1 x 1.
_SCAN_SECONDS_PER_PIXEL = 6e-10
_SCAN_SECONDS = 2e-5
# Frame headers of arithmetic coding, which works on where Huffman coding sees that nothing follows.
_ARITHMETIC = (b"\xff\xc9", b"\xff\xca")
_ARITHMETIC_TIMES = 10
# The entry of an item of the type `grid` (ISO/IEC 14496-12, `infe` of version 2 or 3; 23008-12, 6.6.2.3).
_GRID = re.compile(rb"infe(\x02.{3}|\x03.{5}).{4}grid", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """The most that one image, or the rows of one shard, may cost.

    Attributes:
        pixels: Most pixels of an image, width times height.
        bytes: Most encoded bytes of an image.
        seconds: Most seconds of one core that decoding an image may take.
        extra_formats: Image formats, by Pillow's names, that are read besides `FORMATS`.
        shard_rows: Most rows of a shard.
        shard_bytes: Most bytes of a shard's columns, the images left out, in memory.
    """

    pixels: int = 89_478_485
    bytes: int = 64 * 2**20
    seconds: float = 20.0
    extra_formats: tuple[str, ...] = ()
    shard_rows: int = 2_000_000
    shard_bytes: int = 2 * 2**30

    @property
    def formats(self) -> tuple[str, ...]:
        """All image formats that are read."""
        return FORMATS + self.extra_formats


class PastLimit(Exception):
    """An image costs more than the limits; the message says what and how much."""


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Checks names of image formats.

    Args:
        names: Names as Pillow has them, in any case, e.g. `JPEG2000`.

    Returns:
        The same in Pillow's own spelling.

    Raises:
        SettingsError: Pillow has no format of a name.
    """
    Image.init()
    known = {name.upper() for name in Image.OPEN}
    for name in names:
        if name.upper() not in known:
            raise SettingsError(
                f"BORING_EXTRA_IMAGE_FORMATS names {name!r}, which Pillow does not read. Expected some of "
                f"{', '.join(sorted(known - set(FORMATS)))}."
            )
    return tuple(name.upper() for name in names)


def check_size(height: int, width: int, resized: tuple[int, int], limits: Limits) -> None:
    """Checks an image's pixels, also once resized: a 1 x 100,000 strip is small until then.

    Args:
        height: Its rows.
        width: Its columns.
        resized: Height and width that it will be resized to.
        limits: The limits.

    Raises:
        PastLimit: It has more pixels than the limit.
    """
    for rows, columns, when in ((height, width, ""), (*resized, " once resized")):
        if rows * columns > limits.pixels:
            raise PastLimit(f"{columns} x {rows} pixels{when}; the limit is {limits.pixels}")


def check_scans(data: bytes, height: int, width: int, limits: Limits) -> None:
    """Checks what the scans of a JPEG will cost: each goes over the whole image, and may take few bytes.

    Args:
        data: The encoded image. Only a JPEG's markers hold a byte 0xFF with another than 0 after it.
        height: Its rows.
        width: Its columns.
        limits: The limits.

    Raises:
        PastLimit: They would take longer than the limit.
    """
    scans = data.count(b"\xff\xda")
    seconds = scans * (_SCAN_SECONDS + height * width * _SCAN_SECONDS_PER_PIXEL)
    if scans > 1 and any(marker in data for marker in _ARITHMETIC):
        seconds *= _ARITHMETIC_TIMES
    if seconds > limits.seconds:
        raise PastLimit(
            f"{scans} scans of {width} x {height} pixels take about {seconds:.0f} s; "
            f"the limit is {limits.seconds:g} s"
        )


def check_cells(data: bytes) -> None:
    """Refuses an AVIF that is put together from others: what size those have is only seen by decoding them.

    Args:
        data: The encoded image, of any format.

    Raises:
        PastLimit: It is such an AVIF.
    """
    if data[4:8] == b"ftyp" and _GRID.search(data):
        raise PastLimit("an AVIF grid, whose cells have no size that could be limited")


class MeteredFile(io.BytesIO):
    """An image's bytes, read until they have cost their decoder more time than the limit.

    The time is that of the calling thread on its core, so a busy machine fails no image.
    """

    def __init__(self, data: bytes, seconds: float) -> None:
        """Begins to count.

        Args:
            data: The encoded image.
            seconds: The limit.
        """
        super().__init__(data)
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads on, as any file does.

        Raises:
            PastLimit: The time is up.
        """
        if time.thread_time() > self._end:
            raise PastLimit(f"decoding takes longer than the limit of {self._seconds:g} s")
        return super().read(size)
