"""Decodes image bytes to the uint8 pixels that the model takes, or to a failure.

The result is that of open_clip's preprocess: resize, crop or pad, convert to RGB, in that order. Ordinary
JPEGs take a fast path, libjpeg-turbo and torch's antialiased uint8 resize, which differs from Pillow by at
most 2 levels in 255. All other images, and JPEGs that the fast path refuses, go through Pillow in the same
steps as in open_clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from boring_assets.engine.decoding.limits import Limits, PastLimit, check_scans, check_size
from boring_assets.engine.decoding.pillow import failure_of, open_image
from boring_assets.engine.decoding.pixels import Size
from boring_assets.engine.samples import Failure, Reason

if TYPE_CHECKING:
    from torch import Tensor

# Maximum decoded pixels of a group of equally sized images that are resized together.
_GROUP_PIXELS = 4 * 2**20
DEVICE_RESIZE_PIXELS = 512 * 512
"""Most pixels of an image that is resized on the device."""
_LONGEST_SIDE = 1024
_JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Preprocess:
    """A model's preprocess configuration, from open_clip.

    Attributes:
        height: Height of the model's input, in pixels.
        width: Width of the model's input, in pixels.
        resize_mode: `shortest` (resize the shorter side, then centre crop), `longest` (resize the longer
            side, then pad) or `squash`.
        interpolation: `bicubic` or `bilinear`, always antialiased.
        mean: Subtracted from pixels in 0..1, per channel.
        std: Divisor after that, per channel.
        fill: Grey level, 0..255, of the padding of `longest`.
    """

    height: int
    width: int
    resize_mode: str = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    fill: int = 0

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Preprocess":
        """Reads open_clip's preprocess config (`model.visual.preprocess_cfg`)."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size
        mode = config.get("resize_mode") or "shortest"
        # Outside training, open_clip takes `random` as bicubic, and always resizes bicubic where it resizes
        # the shortest side to a size that is not square.
        bilinear = config.get("interpolation") == "bilinear" and (mode != "shortest" or height == width)
        return cls(
            height=height,
            width=width,
            resize_mode=mode,
            interpolation="bilinear" if bilinear else "bicubic",
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            fill=config.get("fill_color") or 0,
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width after the resize, before crop or padding."""
        if self.resize_mode == "squash":
            return self.height, self.width
        if self.resize_mode == "shortest" and self.height == self.width:
            # torchvision's Resize(int) floors the longer side; open_clip's ResizeKeepRatio rounds.
            short, size = min(height, width), self.height
            return (size * height // short, size) if height > width else (size, size * width // short)
        pick = max if self.resize_mode == "longest" else min
        ratio = pick(height / self.height, width / self.width)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def decode(data: bytes, preprocess: Preprocess, limits: Limits) -> "Tensor | Failure":
    """Decodes one image of any format in `limits` to the model's input size.

    Returns:
        uint8 [height, width, 3], RGB, or a failure. Never raises for bad data.
    """
    return decode_all([data], preprocess, limits)[0]


def decode_all(images: Sequence[bytes], preprocess: Preprocess, limits: Limits) -> "list[Tensor | Failure]":
    """Decodes several images like `decode`. JPEGs of equal size share the fixed cost of a resize."""
    answers: list[Tensor | Failure | None] = [_refuse(image, limits) for image in images]
    groups: dict[Size, list[int]] = {}
    for number, image in enumerate(images):
        if answers[number] is None and (size := _plain_jpeg_size(image, preprocess, limits)):
            groups.setdefault(size, []).append(number)
    for size, numbers in groups.items():
        most = max(1, _GROUP_PIXELS // (size[0] * size[1]))
        for start in range(0, len(numbers), most):
            part = numbers[start : start + most]
            decoded = _decode_jpegs([images[number] for number in part], size, preprocess)
            for place, pixels in decoded.items():
                answers[part[place]] = pixels
    return [
        _decode_with_pillow(image, preprocess, limits) if answer is None else answer
        for image, answer in zip(images, answers, strict=True)
    ]


def original_size(data: bytes, preprocess: Preprocess, limits: Limits) -> Size | None:
    """Returns the height and width of an image that the device may resize, else None.

    It is an ordinary JPEG, within the limits, and small enough that its pixels cost the way to the device
    less than a resize costs the CPU.
    """
    if len(data) > limits.bytes:
        return None
    size = _plain_jpeg_size(data, preprocess, limits)
    return size if size and size[0] * size[1] <= DEVICE_RESIZE_PIXELS and max(size) <= _LONGEST_SIDE else None


def decode_jpeg_into(data: bytes, buffer: np.ndarray) -> bool:
    """Decodes an ordinary JPEG into uint8 [height, width, 3] of its size; False if it is damaged."""
    try:
        simplejpeg.decode_jpeg(data, buffer=buffer)
    except ValueError:  # strict: it also refuses damage that Pillow can repair
        return False
    return True


def resize(pixels: "Tensor", preprocess: Preprocess) -> "Tensor":
    """Resizes and crops, or pads, images of one size, uint8 [n, height, width, 3], on the CPU."""
    import torch

    size = tuple(pixels.shape[1:3])
    target = preprocess.resized(*size)
    if target != size and len(pixels):
        # A channels-last [n, 3, h, w] tensor takes torch's vectorised code and stays channels-last.
        pixels = torch.nn.functional.interpolate(
            pixels.permute(0, 3, 1, 2), size=target, mode=preprocess.interpolation, antialias=True
        ).permute(0, 2, 3, 1)
    return _crop_or_pad(pixels, preprocess)


def _refuse(data: bytes, limits: Limits) -> Failure | None:
    if not data:
        return Failure(Reason.DECODE_ERROR, "the image is empty (0 bytes)")
    return limits.too_large(len(data))


def _plain_jpeg_size(data: bytes, preprocess: Preprocess, limits: Limits) -> Size | None:
    """Returns height and width of a JPEG for which the fast path equals open_clip, else None."""
    if data[:3] != _JPEG_MAGIC:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("YCbCr", "Gray"):
        return None
    try:
        check_size(height, width, preprocess.resized(height, width), limits)
        check_scans(data, height, width, limits)
    except PastLimit:
        return None
    return height, width


def _decode_jpegs(images: list[bytes], size: Size, preprocess: Preprocess) -> "dict[int, Tensor]":
    """Decodes JPEGs of one size by the fast path, by their place; Pillow tries those that it refuses."""
    import torch

    buffer = np.empty((len(images), *size, 3), np.uint8)
    good: list[int] = []
    for place, image in enumerate(images):
        if decode_jpeg_into(image, buffer[len(good)]):
            good.append(place)
    resized = resize(torch.from_numpy(buffer[: len(good)]), preprocess)
    return dict(zip(good, resized, strict=True))


def _crop_or_pad(images: "Tensor", preprocess: Preprocess) -> "Tensor":
    """Crops or pads uint8 [n, h, w, 3] to [n, height, width, 3], with open_clip's rounding."""
    import torch

    height, width = images.shape[1:3]
    more_h, more_w = max(0, preprocess.height - height), max(0, preprocess.width - width)
    if more_h or more_w:
        fill = preprocess.fill if preprocess.resize_mode == "longest" else 0
        sides = (0, 0, more_w // 2, more_w - more_w // 2, more_h // 2, more_h - more_h // 2)
        images = torch.nn.functional.pad(images, sides, value=fill)
        height, width = images.shape[1:3]
    top = round((height - preprocess.height) / 2.0)
    left = round((width - preprocess.width) / 2.0)
    return images[:, top : top + preprocess.height, left : left + preprocess.width]


def _decode_with_pillow(data: bytes, preprocess: Preprocess, limits: Limits) -> "Tensor | Failure":
    """Decodes in the same steps as open_clip, on a Pillow image in its own mode."""
    import torch

    try:
        with open_image(data, limits) as image:
            height, width = image.height, image.width
            check_size(height, width, preprocess.resized(height, width), limits)
            resized = _resize_with_pillow(image, preprocess)
            pixels = _crop_with_pillow(resized, preprocess).convert("RGB")
    except Exception as error:
        return failure_of(error, data, limits)
    return torch.from_numpy(np.array(pixels, dtype=np.uint8))


def _resize_with_pillow(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    height, width = preprocess.resized(image.height, image.width)
    if (width, height) == image.size:
        image.load()
        return image
    return image.resize((width, height), Image.Resampling[preprocess.interpolation.upper()])


def _crop_with_pillow(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    more_w, more_h = max(0, preprocess.width - image.width), max(0, preprocess.height - image.height)
    if more_w or more_h:
        fill = preprocess.fill if preprocess.resize_mode == "longest" else 0
        border = (more_w // 2, more_h // 2, more_w - more_w // 2, more_h - more_h // 2)
        bands = len(image.getbands())
        image = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
    left = round((image.width - preprocess.width) / 2.0)
    top = round((image.height - preprocess.height) / 2.0)
    return image.crop((left, top, left + preprocess.width, top + preprocess.height))
