"""Resizes images of many sizes on the model's device, with Pillow's numbers.

Pillow resizes in two passes, horizontal and then vertical, and rounds to whole levels after each. Here each
pass is a matrix product with Pillow's weights (`precompute_coeffs` in its `Resample.c`): bicubic with
a = -0.5, or bilinear, widened by the scale where the image shrinks. Crop and padding are part of the weights,
so that only the pixels that the model gets are computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from boring_assets.engine.decoding.decode import Preprocess
from boring_assets.engine.decoding.pixels import Size, count_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Images are resized in groups, each on one canvas of at most so many pixels; a pixel takes about 60 bytes.
_CANVAS_PIXELS = 4 * 2**20
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}


class DeviceResize:
    """Resizes, and crops or pads, images on a device."""

    def __init__(self, preprocess: Preprocess, device: "torch.device") -> None:
        self._preprocess, self._device = preprocess, device

    def __call__(self, data: "Tensor", sizes: list[Size], out: "Tensor") -> None:
        """Resizes images.

        Args:
            data: uint8 [sum of height * width * 3] on the device, RGB, one image after another.
            sizes: Height and width of each image.
            out: uint8 [n, height, width, 3] on the device; filled with the images as the model takes them.
        """
        import torch

        starts = np.cumsum([0, *map(count_bytes, sizes[:-1])]) // 3
        table = np.column_stack([sizes, [self._preprocess.resized(*size) for size in sizes], starts])
        order = np.lexsort((table[:, 0], table[:, 1]))  # images of about one size share a canvas
        with torch.inference_mode(), _tf32():
            for group in _split(order, table):
                place = torch.from_numpy(group).to(self._device, non_blocking=True)
                out[place] = self._resize(data, table[group])

    def _resize(self, data: "Tensor", table: np.ndarray) -> "Tensor":
        """Returns uint8 [n, height, width, 3] for images whose sizes, resized sizes and starts are given."""
        import torch

        high, wide = table[:, :2].max(axis=0).tolist()
        columns = torch.from_numpy(table).to(self._device, non_blocking=True).T[:, :, None, None]
        heights, widths, new_heights, new_widths, starts = columns
        y = torch.arange(high, device=self._device).view(1, -1, 1).minimum(heights - 1)
        x = torch.arange(wide, device=self._device).view(1, 1, -1).minimum(widths - 1)
        canvas = data.view(-1, 3)[starts + y * widths + x]  # [n, high, wide, 3]
        planes = canvas.permute(0, 3, 1, 2).to(torch.float32)

        target = self._preprocess
        across = self._weights(widths, new_widths, target.width, wide)
        down = self._weights(heights, new_heights, target.height, high)
        rows = _to_levels(planes.flatten(1, 2) @ across.transpose(1, 2))  # [n, 3 * high, width]
        pixels = _to_levels(down[:, None] @ rows.view(len(table), 3, high, -1))  # [n, 3, height, width]
        if target.fill and target.resize_mode == "longest":
            inside = down.sum(-1)[:, None, :, None] * across.sum(-1)[:, None, None, :]
            pixels += target.fill * (1 - inside.round())
        return pixels.permute(0, 2, 3, 1).to(torch.uint8)

    def _weights(self, old: "Tensor", new: "Tensor", target: int, canvas: int) -> "Tensor":
        """Returns the weights of one axis, float32 [n, target, canvas]; those of padding are 0.

        Args:
            old: Sizes before the resize, int64 [n, 1, 1].
            new: Sizes after it, before crop or padding, int64 [n, 1, 1].
            target: The size after crop or padding.
            canvas: The size of the canvas.
        """
        import torch

        more = (target - new).clamp(min=0)
        # Python's round, which open_clip's crop uses, takes halves to the even number; so does torch's.
        first = torch.round((new + more - target) / 2.0).to(torch.int64) - more // 2
        place = torch.arange(target, device=self._device).view(1, -1, 1) + first
        scale = old.to(torch.float64) / new
        spread = scale.clamp(min=1.0)
        support = _SUPPORT[self._preprocess.interpolation] * spread
        center = (place + 0.5) * scale
        lowest = (center - support + 0.5).trunc().clamp(min=0)
        highest = (center + support + 0.5).trunc().minimum(old)
        x = torch.arange(canvas, device=self._device).view(1, 1, -1)
        whole = center.floor()
        # The whole part is taken off first, so that fp32 is exact enough.
        distance = (x - whole.to(torch.int64)).to(torch.float32) + (0.5 - (center - whole)).to(torch.float32)
        weights = self._filter((distance / spread.to(torch.float32)).abs())
        weights = weights * ((x >= lowest) & (x < highest) & (place >= 0) & (place < new))
        return weights / weights.sum(-1, keepdim=True).where((place >= 0) & (place < new), 1.0)

    def _filter(self, x: "Tensor") -> "Tensor":
        """Returns the filter's value at distances of at least 0."""
        if self._preprocess.interpolation == "bilinear":
            return (1 - x).clamp(min=0)
        near = (1.5 * x - 2.5) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        return near.where(x < 1, far.where(x < 2, 0.0))


def _split(order: np.ndarray, table: np.ndarray) -> Iterator[np.ndarray]:
    """Splits images, in order, into groups whose canvas is small enough."""
    start = high = wide = 0
    for end, number in enumerate(order):
        high, wide = max(high, table[number, 0]), max(wide, table[number, 1])
        if (end + 1 - start) * high * wide > _CANVAS_PIXELS and end > start:
            yield order[start:end]
            start, (high, wide) = end, table[number, :2]
    yield order[start:]


def _to_levels(values: "Tensor") -> "Tensor":
    """Rounds to whole levels of 0 to 255, in place; halves are rounded up as in Pillow."""
    return values.add_(0.5).floor_().clamp_(0, 255)


@contextmanager
def _tf32() -> Iterator[None]:
    """Lets matrix products use TF32: levels are exact in it, and weights are good to a sixth of a level."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
