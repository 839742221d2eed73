"""Images that are small and cost much: each is built to slip through limits on pixels and bytes alone."""

import struct
import zlib

from PIL import Image

from tests.engine.kinds import encoded

_BLOCK_RUN = 32767


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


def scans(side: int, count: int, arithmetic: bool = False) -> bytes:
    """A progressive grey JPEG (ITU T.81, annex G) of scans that say, in few bytes: nothing here.

    Args:
        side: Its height and width, a multiple of 8.
        count: How many scans, besides the first.
        arithmetic: Claims arithmetic coding instead of Huffman's.
    """
    blocks = (side // 8) ** 2
    tables = _segment(0xDB, b"\0" + b"\1" * 64)
    frame = _segment(0xCA if arithmetic else 0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    # DC: the code 0 is "no difference". AC: 0 is a run of 2**14 and more empty blocks, 10 is one of them.
    codes = _segment(0xC4, b"\0\1" + bytes(15) + b"\0") + _segment(0xC4, b"\x10\1\1" + bytes(14) + b"\xe0\0")
    empty = _packed(("0" + "1" * 14) * (blocks // _BLOCK_RUN) + "10" * (blocks % _BLOCK_RUN))
    first = _segment(0xDA, b"\1\1\0\0\0\0") + _packed("0" * blocks)
    steps = [(k, al) for k in range(1, 64) for al in range(13, -1, -1)]
    more = b"".join(
        _segment(0xDA, bytes([1, 1, 0, k, k, (0 if al == 13 else al + 1) << 4 | al])) + empty
        for k, al in (steps[number % len(steps)] for number in range(count))
    )
    return b"\xff\xd8" + tables + frame + codes + first + more + b"\xff\xd9"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(64)))


def png_chunks(count: int) -> bytes:
    """A PNG with so many empty chunks."""
    whole = encoded(Image.new("RGB", (64, 64)), "PNG")
    return whole[:33] + png_chunk(b"abCd", b"") * count + whole[33:]


def jpeg_segments(count: int) -> bytes:
    """A JPEG with so many empty comments."""
    whole = encoded(Image.new("RGB", (64, 64)).convert("CMYK"), "JPEG")
    return whole[:2] + b"\xff\xfe\0\2" * count + whole[2:]


def gif_extensions(count: int) -> bytes:
    """A GIF with so many comments before its first frame."""
    whole = encoded(Image.new("L", (64, 64)), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    return whole[:start] + b"!\xfe\1c\0" * count + whole[start:]


def gif_frame(side: int) -> bytes:
    """A GIF of one pixel whose first frame is so large."""
    header = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    return header + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\2\2\x44\1\0;"


def tiff_tile(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of deflated zeros that is so large (TIFF 6.0, section 15)."""
    body = zlib.compress(bytes(side * side), 9)
    tags = [
        (256, 4, 64),
        (257, 4, 64),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, side),
        (323, 4, side),
        (324, 4, 8),
        (325, 4, len(body)),
    ]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<H2x" if kind == 3 else "<I", value)
        for tag, kind, value in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    body += bytes(len(body) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory


def avif_size(side: int, claimed: int) -> bytes:
    """An AVIF of `side` x `side` pixels that claims fewer."""
    whole = encoded(Image.new("RGB", (side, side), "red"), "AVIF", speed=10)
    at = whole.index(b"ispe") + 8
    return whole[:at] + struct.pack(">II", claimed, claimed) + whole[at + 8 :]


def avif_grid() -> bytes:
    """An AVIF that says of its image that it is put together from others."""
    whole = encoded(Image.new("RGB", (64, 64), "red"), "AVIF", speed=10)
    at = whole.index(b"infe")
    return whole[:at] + whole[at:].replace(b"av01", b"grid", 1)
