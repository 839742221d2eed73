"""Opens images with Pillow: the formats that are read, within the limits of one image."""

import io
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from PIL import Image, UnidentifiedImageError

from boring_assets.engine.decoding.limits import (
    EXTRAS,
    FORMATS,
    Limits,
    PastLimit,
    check_container,
    check_scans,
    check_size,
    explain_unknown,
)
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import SettingsError

# What Pillow warns about is either a recorded failure or harmless.
_NO_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_OTHER_NAMES = {"HEIC": "HEIF", "JPEGXL": "JXL", "JPEG-XL": "JXL", "JPEG XL": "JXL", "JP2": "JPEG2000"}


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Checks names of image formats, and loads the plug-ins that some need.

    Args:
        names: Names as Pillow has them, in any case, e.g. `JPEG2000`; also `HEIC` and `JPEGXL`.

    Returns:
        The same in Pillow's own spelling.

    Raises:
        SettingsError: Pillow has no format of a name, or its plug-in is not installed.
    """
    Image.init()
    formats = tuple(_OTHER_NAMES.get(name.upper(), name.upper()) for name in names)
    known = {name.upper() for name in Image.OPEN} | set(EXTRAS)
    for name, image_format in zip(names, formats, strict=True):
        if image_format not in known:
            raise SettingsError(
                f"BORING_EXTRA_IMAGE_FORMATS names {name!r}, which Pillow does not read. Expected some of "
                f"{', '.join(sorted(known - set(FORMATS)))}."
            )
    try:
        load_plugins(formats)
    except ImportError as error:
        raise SettingsError(
            f"BORING_EXTRA_IMAGE_FORMATS names {', '.join(names)}, but {error.name} is not installed: "
            'pip install "boring_assets[heic]" for HEIC, "boring_assets[jxl]" for JPEG XL.'
        ) from error
    return formats


@cache
def load_plugins(formats: tuple[str, ...]) -> None:
    """Registers the plug-ins of Pillow that some formats need; each process that decodes has to."""
    if "HEIF" in formats:
        import pillow_heif

        # One thread an image, as for every other format; nothing but the image itself is wanted.
        pillow_heif.register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )
    if "JXL" in formats:
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = 0


@contextmanager
def open_image(data: bytes, limits: Limits) -> Iterator[Image.Image]:
    """Opens an encoded image, of untrusted bytes; the limits apply until the context ends.

    Most formats are decoded only when their pixels are used.

    Raises:
        Exception: Nearly any, for damaged bytes; see `failure_of`.
    """
    if _NO_WARNINGS not in warnings.filters:  # another library may have reset the filters
        warnings.filterwarnings("ignore", module=_NO_WARNINGS[3].pattern)
    load_plugins(limits.extra_formats)
    check_container(data, limits)
    file = MeteredFile(data, limits.seconds)
    with _pillow_limit(limits.pixels), Image.open(file, formats=limits.formats) as image:
        check_size(image.height, image.width, (image.height, image.width), limits)
        if image.format == "TIFF":  # libtiff decodes whole tiles, whose size Pillow does not check
            tile = image.tag_v2.get(323, 1), image.tag_v2.get(322, 1)  # type: ignore[attr-defined]
            check_size(*tile, tile, limits)
        if image.format in ("JPEG", "MPO"):
            check_scans(data, image.height, image.width, limits)
        yield image


def failure_of(error: Exception, data: bytes, limits: Limits) -> Failure:
    """Returns the failure of an image whose decoding has raised an error, in `open_image` or after it."""
    if isinstance(error, PastLimit | Image.DecompressionBombError):
        return Failure(Reason.TOO_LARGE, str(error))
    if isinstance(error, UnidentifiedImageError):
        return Failure(Reason.DECODE_ERROR, explain_unknown(data, limits))
    return Failure(Reason.DECODE_ERROR, f"{type(error).__name__}: {error}"[:500])


_active_limits: Counter[int] = Counter()
_active_lock = threading.Lock()
_default_limit: int | None = None


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Sets Pillow's own limit, which also applies inside a file, e.g. to a GIF's frames.

    It is global, and other code in this process may decode images too, so it is put back afterwards. Where
    threads have different limits, the highest one applies.
    """
    global _default_limit
    with _active_lock:
        if not _active_limits:
            _default_limit = Image.MAX_IMAGE_PIXELS
        _active_limits[pixels] += 1
        Image.MAX_IMAGE_PIXELS = max(_active_limits)
    try:
        yield
    finally:
        with _active_lock:
            _active_limits[pixels] -= 1
            if not _active_limits[pixels]:
                del _active_limits[pixels]
            Image.MAX_IMAGE_PIXELS = max(_active_limits) if _active_limits else _default_limit


class MeteredFile(io.BytesIO):
    """An image's bytes, which a decoder may read until it has used more time than the limit.

    It is the thread's processor time, so that no image fails because the machine is busy.
    """

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any file does; raises PastLimit if the time is up."""
        if time.thread_time() > self._end:
            raise PastLimit(f"decoding takes longer than the limit of {self._seconds:g} s")
        return super().read(size)
