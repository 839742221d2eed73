"""Images, parquet files and tars with damage that is the same for the same seed."""

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from PIL import Image

from tests.engine.bombs import png_chunk
from tests.engine.kinds import KINDS, encoded, jpeg, picture

WIDTH, HEIGHT = 70, 50
ROWS = 24
_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
_EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\1",
)


def _interlaced(image: Image.Image) -> bytes:
    """A PNG in Adam7's seven passes, which Pillow does not write (PNG specification, 8.2)."""
    pixels = np.asarray(image.convert("RGB"))
    lines = [b"\0" + line.tobytes() for x, y, dx, dy in _PASSES for line in pixels[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in parts)


@cache
def whole_images() -> dict[str, bytes]:
    """An undamaged image of each kind."""
    image = picture(WIDTH, HEIGHT)
    frames = [picture(WIDTH, HEIGHT, seed) for seed in range(1, 4)]
    made = {name: make(image) for name, make in KINDS.items()}
    made["interlaced png"] = _interlaced(image)
    made["optimized jpeg"] = encoded(image, "JPEG", optimize=True, restart_marker_rows=1)
    made["animated webp"] = encoded(image, "WEBP", save_all=True, append_images=frames)
    made["lossless webp"] = encoded(image, "WEBP", lossless=True)
    made["animated gif"] = encoded(image, "GIF", save_all=True, append_images=frames)
    made["palette bmp"] = encoded(image.convert("P"), "BMP")
    for name in ("raw", "packbits", "tiff_adobe_deflate", "jpeg", "lzma", "zstd"):
        made[f"tiff {name}"] = encoded(image, "TIFF", compression=name)
    made["tiff group4"] = encoded(image.convert("1"), "TIFF", compression="group4")
    made["big tiff"] = encoded(image, "TIFF", big_tiff=True)
    made["avif"] = encoded(image, "AVIF", speed=10)
    return made


def mutate(data: bytes, rng: Generator) -> bytes:
    """Damages bytes in one to three ways, nearer to their start than to their end."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not out:
            break
        at = min(int(rng.integers(len(out))), int(rng.integers(len(out))))
        kind = rng.integers(8)
        if kind == 0:
            for _ in range(rng.integers(1, 9)):
                out[rng.integers(len(out))] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del out[max(1, at) :]
        elif kind == 2:
            out[at : at + 4] = _EXTREMES[rng.integers(len(_EXTREMES))]
        elif kind == 3:
            head = min(64, len(out))
            out[rng.integers(head)] = int(rng.integers(256))
        elif kind == 4:
            end = at + int(rng.integers(1, 200))
            out[at:at] = out[at:end] * int(rng.integers(1, 4))
        elif kind == 5:
            del out[at : at + int(rng.integers(1, 100))]
        elif kind == 6:
            out[at:at] = rng.bytes(int(rng.integers(1, 40)))
        else:
            end = at + int(rng.integers(1, 64))
            out[at:end] = bytes(len(out[at:end]))
    return bytes(out)


def mutated_images(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged images, with the names of their kinds, all kinds in turn."""
    wholes = list(whole_images().items())
    rng = np.random.default_rng(seed)
    for number in range(count):
        name, data = wholes[number % len(wholes)]
        yield name, mutate(data, rng)


def _rows() -> dict[str, pa.Array]:
    """Columns of many types, without images."""
    keys = [f"{row:09}" for row in range(ROWS)]
    return {
        "key": pa.array(keys),
        "url": pa.array([f"https://a.test/{key}.jpg" for key in keys]),
        "caption": pa.array([None, "a caption", "été", "x" * 500] * (ROWS // 4)),
        "status": pa.array(["success", "failed_to_download"] * (ROWS // 2)),
        "width": pa.array(range(ROWS), pa.int32()),
        "similarity": pa.array(np.linspace(0, 1, ROWS)),
        "tags": pa.array([["a", None], [], None, ["b"]] * (ROWS // 4)),
        "exif": pa.array([{"make": "m", "iso": [1, 2]}, None] * (ROWS // 2)),
        "when": pa.array([0] * ROWS, pa.timestamp("ms", "UTC")),
        "price": pa.array([1] * ROWS, pa.decimal128(12, 2)),
    }


@cache
def whole_parquets() -> dict[str, bytes]:
    """Undamaged parquet files with their images inside, in many encodings."""
    images = pa.array([jpeg(row % 3) if row % 5 else None for row in range(ROWS)])
    nested = pa.array([{"bytes": data.as_py(), "path": "x"} for data in images])
    ways: dict[str, tuple[dict, dict]] = {
        "snappy": ({"jpg": images}, {"compression": "snappy"}),
        "zstd": ({"jpg": images}, {"compression": "zstd", "row_group_size": 7}),
        "plain": ({"jpg": images}, {"compression": "none", "use_dictionary": False}),
        "second version": ({"jpg": images}, {"data_page_version": "2.0", "compression": "gzip"}),
        "hugging face": ({"photo": nested}, {"compression": "lz4"}),
        "small pages": ({"jpg": images}, {"data_page_size": 500, "write_page_index": True}),
        "delta": (
            {"jpg": images},
            {
                "use_dictionary": False,
                "column_encoding": {"key": "DELTA_BYTE_ARRAY", "width": "DELTA_BINARY_PACKED"},
            },
        ),
    }
    made = {}
    for name, (more, options) in ways.items():
        out = io.BytesIO()
        pq.write_table(pa.table({**_rows(), **more}), out, **options)
        made[name] = out.getvalue()
    return made


def whole_rows() -> pa.Table:
    """The rows that belong to `whole_tars`."""
    return pa.table(_rows())


@cache
def whole_tars() -> dict[str, bytes]:
    """Undamaged tars, as img2dataset writes them, in each of the formats."""
    made = {}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for row in range(ROWS):
                long = "d/" * 80 if row == 7 and form != tarfile.USTAR_FORMAT else ""
                for name, data in ((f"{long}{row:09}.jpg", jpeg(row % 3)), (f"{row:09}.txt", b"caption")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        made[f"tar {form}"] = out.getvalue()
    return made


def mutated_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged parquet files and tars, in turn; the names of tars begin with `tar`."""
    wholes = [*whole_parquets().items(), *whole_tars().items()]
    rng = np.random.default_rng(seed)
    for number in range(count):
        name, data = wholes[number % len(wholes)]
        if name.startswith("tar") or number % 2:
            yield name, mutate(data, rng)
        else:  # the footer says where everything is, and how long
            start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
            footer = mutate(data[start:-8], rng)
            yield name, data[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1"
