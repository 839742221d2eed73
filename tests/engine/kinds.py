"""Encoded images of every kind that img2dataset may leave behind, and shards to put them in."""

import io
import tarfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from boring_assets.engine.samples import Shard


@cache
def picture(width: int, height: int, seed: int = 0, channels: int = 3) -> Image.Image:
    """Something like a photograph: soft shapes, a few hard edges, a little noise."""
    rng = np.random.default_rng([seed, width, height, channels])
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, channels), dtype=np.uint8).squeeze())
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 2
    pixels = pixels + rng.integers(-6, 7, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def _rotated(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees to show it
    return encoded(image, "JPEG", quality=92, exif=exif)


def _transparent_palette(image: Image.Image) -> bytes:
    return encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=3)


def _deep(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG")


Kind = Callable[[Image.Image], bytes]
# These take the fast way, which may differ from Pillow by two levels.
FAST: dict[str, Kind] = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=92),
    "jpeg 4:4:4": lambda image: encoded(image, "JPEG", quality=92, subsampling=0),
    "jpeg 4:2:2": lambda image: encoded(image, "JPEG", quality=60, subsampling=1),
    "progressive": lambda image: encoded(image, "JPEG", quality=85, progressive=True),
    "grayscale": lambda image: encoded(image.convert("L"), "JPEG", quality=90),
    "exif-rotated": _rotated,
}
# These are Pillow's, and must be exact.
EXACT: dict[str, Kind] = {
    "cmyk": lambda image: encoded(image.convert("CMYK"), "JPEG", quality=92),
    "rgb jpeg": lambda image: encoded(image, "JPEG", quality=92, keep_rgb=True),
    "png": lambda image: encoded(image, "PNG"),
    "palette": lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "transparent palette": _transparent_palette,
    "bilevel": lambda image: encoded(image.convert("1"), "PNG"),
    "rgba": lambda image: encoded(picture(*image.size, channels=4), "PNG"),
    "la": lambda image: encoded(picture(*image.size, channels=4).convert("LA"), "PNG"),
    "16-bit": _deep,
    "webp": lambda image: encoded(image, "WEBP", quality=80),
    "webp with alpha": lambda image: encoded(picture(*image.size, channels=4), "WEBP", lossless=True),
    "gif": lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
    "bmp": lambda image: encoded(image, "BMP"),
    "tiff": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
}
KINDS = FAST | EXACT


@cache
def sample(kind: str, width: int, height: int) -> bytes:
    """One image of a kind."""
    return KINDS[kind](picture(width, height))


def jpeg(seed: int = 0, width: int = 96, height: int = 80) -> bytes:
    return FAST["jpeg"](picture(width, height, seed))


def shard_at(path: Path | str, root: Path | str | None = None, fs: AbstractFileSystem | None = None) -> Shard:
    """The shard of a parquet file, by default on the local disk with its folder as the root."""
    path = str(path)
    root = path.rpartition("/")[0] if root is None else str(root)
    key = path.removeprefix(root + "/").removesuffix(".parquet")
    return Shard(key=key, uri=path, fs=fs or LocalFileSystem(), path=path, root=root, version="1")


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> None:
    write_typed_tar(path, ((name, tarfile.REGTYPE, data) for name, data in members), **options)


def write_typed_tar(
    path: Path, members: Iterable[tuple[str, bytes, bytes]], mode: str = "w", **options: object
) -> None:
    """Writes members of a name, a type and content; links lead to `a.jpg`."""
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "a.jpg"
            tar.addfile(info, io.BytesIO(data))
