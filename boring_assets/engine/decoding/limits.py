"""Limits on images and shards, and checks of them before memory or time is spent.

Input is not trusted. For most decoders the time grows with an image's pixels and bytes, which are checked
first. Two things remain: the scans of a JPEG are counted here, and `pillow.MeteredFile` stops Pillow between
the many small pieces of a file.
"""

import re
from dataclasses import dataclass

from boring_assets.engine.samples import Failure, Reason

# The formats of image datasets. Pillow reads some forty more, which few people need and few maintain.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Formats that a plug-in of Pillow reads: the extra of this project that installs it.
EXTRAS = {"HEIF": "heic", "JXL": "jxl"}

# Time to decode an empty scan, measured on colour images of 9408 x 9408 pixels and of 1 x 1.
_SCAN_SECONDS_PER_PIXEL = 6e-10
_SCAN_SECONDS = 2e-5
# The least bytes of a scan: its marker, and a header for one component (ITU-T T.81, B.2.3).
_SCAN_BYTES = 10
# Frame headers of arithmetic coding, which goes on working where Huffman coding sees the end of the data.
_ARITHMETIC = (b"\xff\xc9", b"\xff\xca")
_ARITHMETIC_TIMES = 10
# The entry of an item of the type `grid` (ISO/IEC 14496-12, `infe` of version 2 or 3; 23008-12, 6.6.2.3).
_SPATIAL_EXTENTS = re.compile(rb"ispe\0{4}(.{4})(.{4})", re.DOTALL)
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

    def too_large(self, size: int) -> Failure | None:
        """Returns the failure of an image with too many bytes, or None."""
        if size <= self.bytes:
            return None
        return Failure(Reason.TOO_LARGE, f"{size} bytes; the limit is {self.bytes}")


# How encoded images begin: offset and bytes. The formats that are off by default are known too.
_MAGIC = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftyphev", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (0, b"\xff\x0a", "JXL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
)


def image_format(data: bytes) -> str | None:
    """The format of an encoded image by its first bytes, as Pillow names it; None where they are unknown."""
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    # `BM` begins many texts too; the header that follows has one of these lengths.
    if data[:2] == b"BM" and data[14:18] in (b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0", b"\x0c\0\0\0"):
        return "BMP"
    return None


class PastLimit(Exception):
    """An image is past one of the limits; the message says which, and by how much."""


def explain_unknown(data: bytes, limits: Limits) -> str:
    """Why no decoder took an image: its format and how to turn it on, or the bytes that it begins with."""
    name = image_format(data)
    if name is None or name in limits.formats:
        return f"not one of {', '.join(limits.formats)}: it begins with {data[:16]!r}"
    extra = f', and pip install "boring_assets[{EXTRAS[name]}]"' if name in EXTRAS else ""
    return f"not one of {', '.join(limits.formats)}, but {name}: set BORING_EXTRA_IMAGE_FORMATS={name}{extra}"


def check_size(height: int, width: int, resized: tuple[int, int], limits: Limits) -> None:
    """Raises PastLimit for too many pixels, also once resized: a 1 x 100,000 strip is small until then."""
    for rows, columns, when in ((height, width, ""), (*resized, " once resized")):
        if rows * columns > limits.pixels:
            raise PastLimit(f"{columns} x {rows} pixels{when}; the limit is {limits.pixels}")


def check_scans(data: bytes, height: int, width: int, limits: Limits) -> None:
    """Raises PastLimit if a JPEG's scans take too long: each goes over all of it, and may have few bytes."""
    each = _SCAN_SECONDS + height * width * _SCAN_SECONDS_PER_PIXEL
    if len(data) / _SCAN_BYTES * each * _ARITHMETIC_TIMES <= limits.seconds:
        return  # counting them would cost more than the rest of this check
    scans = data.count(b"\xff\xda")  # only markers hold a byte 0xFF with another than 0 after it
    seconds = scans * each
    if scans > 1 and any(marker in data for marker in _ARITHMETIC):
        seconds *= _ARITHMETIC_TIMES
    if seconds > limits.seconds:
        raise PastLimit(
            f"{scans} scans of {width} x {height} pixels take about {seconds:.0f} s; "
            f"the limit is {limits.seconds:g} s"
        )


def check_container(data: bytes, limits: Limits) -> None:
    """Checks what a decoder does not say before it has decoded: sizes inside AVIF, HEIC and JPEG XL.

    Raises:
        PastLimit: It has too many pixels, or is an AVIF grid, whose cells' sizes are seen only by decoding.
    """
    if image_format(data) == "JXL" and "JXL" in limits.formats:  # the plug-in decodes as soon as it opens
        height, width = _jxl_size(data)
        check_size(height, width, (height, width), limits)
    if data[4:8] != b"ftyp":
        return
    if "HEIF" in limits.formats:  # libheif refuses a cell that is larger than its `ispe` says
        for size in _SPATIAL_EXTENTS.finditer(data):
            width, height = int.from_bytes(size[1]), int.from_bytes(size[2])
            check_size(height, width, (height, width), limits)
    # A file of the brand `mif1` may go to the decoder of AVIF.
    if _GRID.search(data) and not ("HEIF" in limits.formats and data[8:11] in (b"hei", b"hev")):
        raise PastLimit("an AVIF grid, whose cells have no size that could be limited")


def _jxl_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG XL image (ISO/IEC 18181-1, SizeHeader; 18181-2 for the container)."""
    start = 0
    while not data.startswith(b"\xff\x0a", start):  # a container: boxes up to the one with the codestream
        length, box = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[start + 8 : start + 16]), 16
        if box in (b"jxlc", b"jxlp"):
            start += head + (4 if box == b"jxlp" else 0)
            if not data.startswith(b"\xff\x0a", start):
                raise ValueError("a JPEG XL container without a codestream")
        elif length < head or start + length >= len(data):
            raise ValueError("a JPEG XL container without a codestream")
        else:
            start += length
    bits = int.from_bytes(data[start + 2 : start + 16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = side()
    ratio = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[take(3)]
    return height, height * ratio[0] // ratio[1] if ratio[0] else side()
