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
from boring_assets.engine.decoding.pixels import Size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Images are resized in groups, each on one canvas of at most so many pixels. A pixel takes about 40 bytes. A
# group takes about 60 launches, so small groups keep the host busy.
_CANVAS_PIXELS = 16 * 2**20
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}


class DeviceResize:
    """Resizes, and crops or pads, images on a device."""

    def __init__(self, preprocess: Preprocess, device: "torch.device") -> None:
        self._preprocess, self._device = preprocess, device

    def __call__(self, data: "Tensor", sizes: list[Size], out: "Tensor") -> None:
        """Resizes images, on the current stream of a CUDA device; the host does not wait for it.

        Args:
            data: uint8 [sum of height * width * 3] on the device, RGB, one image after another.
            sizes: Height and width of each image.
            out: uint8 [n, height, width, 3] on the device; filled with the images as the model takes them.
        """
        import torch

        old = np.array(sizes)
        new = np.array([self._preprocess.resized(*size) for size in sizes])
        starts = np.cumsum(old.prod(axis=1)) - old.prod(axis=1)
        order = np.lexsort((old[:, 0], old[:, 1]))  # images of about one size share a canvas
        with torch.inference_mode(), _tf32():
            for group in _split(order, old):
                self._resize(data.view(-1, 3), group, old[group], new[group], starts[group], out)

    def _resize(
        self,
        data: "Tensor",
        group: np.ndarray,
        old: np.ndarray,
        new: np.ndarray,
        starts: np.ndarray,
        out: "Tensor",
    ) -> None:
        """Resizes the images of a group, whose sizes, resized sizes and starts are given."""
        import torch

        target, (high, wide) = self._preprocess, old.max(axis=0).tolist()
        targets = np.broadcast_to([target.height, target.width], old.shape)
        # Sizes before and after, and the target, of each image from top to bottom, then of each across. Equal
        # ones have the same weights.
        axes = np.stack([old, new, targets], axis=-1).swapaxes(0, 1).reshape(-1, 3)
        distinct, which = np.unique(axes, axis=0, return_inverse=True)
        place, first, rows, columns, distinct_axes, down_and_across = self._send(
            group, starts, old[:, 0], old[:, 1], distinct.T, which.reshape(2, -1)
        )
        weights = self._weights(distinct_axes, max(target.height, target.width), max(high, wide))
        down = weights[:, : target.height, :high][down_and_across[0]]  # [n, height, high]
        across = weights[:, : target.width, :wide][down_and_across[1]]  # [n, width, wide]

        y = torch.arange(high, device=self._device).minimum(rows[:, None] - 1)  # [n, high]
        x = torch.arange(wide, device=self._device).minimum(columns[:, None] - 1)  # [n, wide]
        canvas = data[(first[:, None] + y * columns[:, None])[:, :, None] + x[:, None]]  # [n, high, wide, 3]
        lines = canvas.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        narrow = _to_levels(lines.flatten(1, 2) @ across.transpose(1, 2))  # [n, high * 3, width]
        pixels = _to_levels(down @ narrow.view(len(group), high, -1)).unflatten(2, (3, -1))
        if target.fill and target.resize_mode == "longest":
            inside = down.sum(-1)[:, :, None, None] * across.sum(-1)[:, None, None, :]
            pixels += target.fill * (1 - inside.round())
        out[place] = pixels.transpose(2, 3).to(torch.uint8)

    def _send(self, *arrays: np.ndarray) -> "list[Tensor]":
        """Copies integers to the device at once, as int64; from pinned memory, which does not wait for it."""
        import torch

        together = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        if self._device.type == "cuda":
            together = together.pin_memory()
        parts = together.to(self._device, non_blocking=True).split([array.size for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def _weights(self, axes: "Tensor", most: int, canvas: int) -> "Tensor":
        """Returns the weights of some axes, float32 [n, most, canvas]; those of padding are 0.

        Args:
            axes: For each its size before the resize, after it, and after crop or padding, int64 [3, n].
            most: The largest of the sizes after crop or padding.
            canvas: The size of the canvas.
        """
        import torch

        old, new, target = axes[:, :, None, None]
        more = (target - new).clamp(min=0)
        # Python's round, which open_clip's crop uses, takes halves to the even number; so does torch's.
        first = torch.round((new + more - target) / 2.0).to(torch.int64) - more // 2
        place = torch.arange(most, device=self._device).view(1, -1, 1) + first
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


def _split(order: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Splits images, in order, into groups whose canvas is small enough."""
    start = high = wide = 0
    for end, (height, width) in enumerate(sizes[order].tolist()):
        high, wide = max(high, height), max(wide, width)
        if (end + 1 - start) * high * wide > _CANVAS_PIXELS and end > start:
            yield order[start:end]
            start, high, wide = end, height, width
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
