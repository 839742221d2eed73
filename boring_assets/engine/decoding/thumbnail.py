"""Thumbnails: decoded within limits and encoded again, so that no original bytes reach a browser."""

import hashlib
import io

from PIL import Image, ImageOps, UnidentifiedImageError

from boring_assets.engine.decoding.limits import Limits, PastLimit, explain_unknown
from boring_assets.engine.decoding.pillow import open_image
from boring_assets.engine.samples import Failure, Reason

SIDE = 224
"""Longest side of a thumbnail, in pixels."""


def thumbnail(data: bytes, limits: Limits, side: int = SIDE) -> bytes | Failure:
    """Returns a small JPEG of an encoded image.

    Args:
        data: The encoded image.
        limits: Limits for one image.
        side: Longest side of the thumbnail, in pixels.

    Returns:
        A JPEG without metadata, or a failure. Never raises for bad data.
    """
    if len(data) > limits.bytes:
        return Failure(Reason.TOO_LARGE, f"{len(data)} bytes; the limit is {limits.bytes}")
    try:
        with open_image(data, limits) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a JPEG at a fraction of its size
            small = ImageOps.exif_transpose(image)
            small.thumbnail((side, side))
            out = io.BytesIO()
            Image.frombytes("RGB", small.size, small.convert("RGB").tobytes()).save(out, "JPEG", quality=82)
            return out.getvalue()
    except (PastLimit, Image.DecompressionBombError) as error:
        return Failure(Reason.TOO_LARGE, str(error))
    except UnidentifiedImageError:
        return Failure(Reason.DECODE_ERROR, explain_unknown(data, limits))
    # Pillow's plug-ins raise nearly any exception for damaged bytes.
    except Exception as error:
        return Failure(Reason.DECODE_ERROR, f"{type(error).__name__}: {error}"[:500])


def pixel_digest(data: bytes, limits: Limits) -> str | None:
    """Returns a digest of the pixels, equal for equal pixels in any format, or None if decoding fails."""
    if len(data) > limits.bytes:
        return None
    try:
        with open_image(data, limits) as image:
            head = f"{image.width} {image.height}".encode()
            return hashlib.sha256(head + image.convert("RGB").tobytes()).hexdigest()
    except Exception:  # as in `thumbnail`
        return None
