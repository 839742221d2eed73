"""Thumbnails: decoded within limits and encoded again, so that no original bytes reach a browser."""

import hashlib
import io

from PIL import Image, ImageOps

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.decoding.pillow import failure_of, open_image
from boring_assets.engine.samples import Failure

SIDE = 224
"""Longest side of a thumbnail, in pixels."""


def thumbnail(data: bytes, limits: Limits, side: int = SIDE) -> bytes | Failure:
    """Returns a JPEG of an encoded image, at most `side` pixels long and without metadata, or a failure."""
    if refusal := limits.too_large(len(data)):
        return refusal
    try:
        with open_image(data, limits) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a JPEG at a fraction of its size
            small = ImageOps.exif_transpose(image)
            small.thumbnail((side, side))
            out = io.BytesIO()
            Image.frombytes("RGB", small.size, small.convert("RGB").tobytes()).save(out, "JPEG", quality=82)
            return out.getvalue()
    except Exception as error:
        return failure_of(error, data, limits)


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
