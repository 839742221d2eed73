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

# Images are resized in groups, each on one canvas of at most so many pixels. A pixel takes about 40 bytes. A
# group takes some 30 launches, so small groups keep the host busy.
_CANVAS_PIXELS = 16 * 2**20
# Most weights of one batch; each takes 4 bytes, and several times as many while they are computed.
_MOST_WEIGHTS = 64 * 2**20
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

        target = self._preprocess
        old = np.array(sizes)
        starts = np.cumsum(old.prod(axis=1)) - old.prod(axis=1)
        order = np.lexsort((old[:, 0], old[:, 1]))  # images of about one size share a canvas
        old, starts = old[order], starts[order]
        new = np.array([target.resized(*size) for size in old.tolist()])
        targets = np.broadcast_to([target.height, target.width], old.shape)
        # Sizes before and after, and the target: first from top to bottom, then across. Equal ones have the
        # same weights.
        axes = np.stack([old, new, targets], axis=-1).swapaxes(0, 1).reshape(-1, 3)
        distinct, numbers = np.unique(axes, axis=0, return_inverse=True)
        most, longest = max(target.height, target.width), int(old.max())
        if len(distinct) * most * longest > _MOST_WEIGHTS and len(sizes) > 1:
            half = len(sizes) // 2
            at = sum(map(count_bytes, sizes[:half]))
            self(data[:at], sizes[:half], out[:half])
            self(data[at:], sizes[half:], out[half:])
            return
        with torch.inference_mode(), _tf32():
            distinct_axes, which, place, first, heights, widths = self._send(
                distinct.T, numbers.reshape(2, -1), order, starts, old[:, 0], old[:, 1]
            )
            weights = self._weights(distinct_axes, most, longest)
            for start, end in _split(old):
                part = slice(start, end)
                high, wide = old[part].max(axis=0).tolist()
                down = weights[:, : target.height, :high][which[0, part]]  # [n, height, high]
                across = weights[:, : target.width, :wide][which[1, part]]  # [n, width, wide]
                canvas = self._gather(data.view(-1, 3), first[part], heights[part], widths[part], high, wide)
                out[place[part]] = self._resize(canvas, down, across)

    def _gather(
        self, data: "Tensor", first: "Tensor", heights: "Tensor", widths: "Tensor", high: int, wide: int
    ) -> "Tensor":
        """Returns images on one canvas, uint8 [n, high, wide, 3]; the edges of smaller ones are repeated."""
        import torch

        y = torch.arange(high, device=self._device).minimum(heights[:, None] - 1)  # [n, high]
        x = torch.arange(wide, device=self._device).minimum(widths[:, None] - 1)  # [n, wide]
        return data[(first[:, None] + y * widths[:, None])[:, :, None] + x[:, None]]

    def _resize(self, canvas: "Tensor", down: "Tensor", across: "Tensor") -> "Tensor":
        """Returns uint8 [n, height, width, 3].

        Args:
            canvas: uint8 [n, high, wide, 3].
            down: Weights from top to bottom, float32 [n, height, high].
            across: Weights from left to right, float32 [n, width, wide].
        """
        import torch

        lines = canvas.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        narrow = _to_levels(lines.flatten(1, 2) @ across.transpose(1, 2))  # [n, high * 3, width]
        pixels = _to_levels(down @ narrow.view(*canvas.shape[:2], -1)).unflatten(2, (3, -1))
        if self._preprocess.fill and self._preprocess.resize_mode == "longest":
            inside = down.sum(-1)[:, :, None, None] * across.sum(-1)[:, None, None, :]
            pixels += self._preprocess.fill * (1 - inside.round())
        return pixels.transpose(2, 3).to(torch.uint8)

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
        highest = highest.where((place >= 0) & (place < new), 0)  # padding
        whole = center.floor()
        # The whole part is taken off first, so that fp32 is exact enough.
        within = (0.5 - (center - whole)).to(torch.float32)
        x = torch.arange(canvas, device=self._device).view(1, 1, -1)
        distance = (x - whole.to(torch.int64)).to(torch.float32) + within
        weights = self._filter((distance / spread.to(torch.float32)).abs())
        weights *= (x >= lowest.to(torch.int64)) & (x < highest.to(torch.int64))
        return weights / weights.sum(-1, keepdim=True).where(highest > 0, 1.0)

    def _filter(self, x: "Tensor") -> "Tensor":
        """Returns the filter's value at distances of at least 0."""
        if self._preprocess.interpolation == "bilinear":
            return (1 - x).clamp(min=0)
        near = (1.5 * x - 2.5) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        return near.where(x < 1, far.where(x < 2, 0.0))


def _split(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Splits images into groups whose canvas is small enough; yields the start and the end of each."""
    start = high = wide = 0
    for end, (height, width) in enumerate(sizes.tolist()):
        high, wide = max(high, height), max(wide, width)
        if (end + 1 - start) * high * wide > _CANVAS_PIXELS and end > start:
            yield start, end
            start, high, wide = end, height, width
    yield start, len(sizes)


def _to_levels(values: "Tensor") -> "Tensor":
    """Rounds to whole levels of 0 to 255, in place."""
    return values.round_().clamp_(0, 255)


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
