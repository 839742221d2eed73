"""Decodes chunks of images in threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from boring_assets.engine.decoding.decode import (
    Preprocess,
    decode,
    decode_all,
    decode_jpeg_into,
    original_size,
)
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.decoding.pixels import Pixels, Size, count_bytes
from boring_assets.engine.samples import Failure

if TYPE_CHECKING:
    from torch import Tensor


def new_buffer(count: int) -> "Tensor":
    """Returns uint8 [count] in ordinary memory."""
    import torch

    return torch.empty(count, dtype=torch.uint8)


@dataclass(frozen=True)
class Target:
    """What images are decoded to.

    Attributes:
        keep_size: Whether ordinary JPEGs keep their size, because the device resizes them.
        new_buffer: Allocates uint8 [n] for the pixels of a chunk.
    """

    preprocess: Preprocess
    keep_size: bool = False
    new_buffer: "Callable[[int], Tensor]" = new_buffer


class Decoded(NamedTuple):
    """A decoded chunk.

    Attributes:
        pixels: The decoded images in order, without failures.
        answers: For each image of the chunk None, or why it failed.
    """

    pixels: Pixels
    answers: list[Failure | None]


class Decoders:
    """Decodes in threads of this process: decoding releases the GIL."""

    def __init__(
        self,
        workers: int,
        target: Target,
        limits: Limits,
        before: Callable[[Sequence[int]], None] = lambda rows: None,
    ) -> None:
        """Starts no thread yet. Each calls `before` with the rows that it decodes next, and with none."""
        self._target, self._limits, self._before = target, limits, before
        self._pool = ThreadPoolExecutor(workers, "decode", initializer=use_one_core)

    def plan(self, image: bytes) -> Size:
        """Returns the size that an image will have once decoded, if it can be decoded."""
        target = self._target
        own = target.keep_size and original_size(image, target.preprocess, self._limits)
        return own or (target.preprocess.height, target.preprocess.width)

    def submit(
        self, images: Sequence[bytes], sizes: Sequence[Size], rows: Sequence[int] = ()
    ) -> Future[Decoded]:
        """Starts to decode images, for which `plan` has returned the sizes. The rows are for `before`."""
        return self._pool.submit(self._decode, images, sizes, rows)

    def _decode(self, images: Sequence[bytes], sizes: Sequence[Size], rows: Sequence[int]) -> Decoded:
        self._before(rows)
        decoded = decode_chunk(images, sizes, self._target, self._limits)
        self._before(())
        return decoded

    def close(self, *, cancel: bool) -> None:
        """Stops the threads when they are done or, with `cancel`, as soon as possible."""
        self._pool.shutdown(wait=cancel, cancel_futures=cancel)


def decode_chunk(images: Sequence[bytes], planned: Sequence[Size], target: Target, limits: Limits) -> Decoded:
    """Decodes images, of the sizes that `Decoders.plan` gave, into one buffer. Bad data is a failure."""
    preprocess = target.preprocess
    model_size: Size = preprocess.height, preprocess.width
    on_cpu = [image for image, size in zip(images, planned, strict=True) if size == model_size]
    resized = iter(decode_all(on_cpu, preprocess, limits))
    # An image that turns out to be damaged may be repaired, and then has the model's size.
    buffer = target.new_buffer(sum(max(count_bytes(size), count_bytes(model_size)) for size in planned))
    memory = buffer.numpy()
    sizes: list[Size] = []
    answers: list[Failure | None] = []
    at = 0
    for image, size in zip(images, planned, strict=True):
        keeps = size != model_size
        if not keeps or not decode_jpeg_into(image, memory[at : at + count_bytes(size)].reshape(*size, 3)):
            pixels = decode(image, preprocess, limits) if keeps else next(resized)
            if isinstance(pixels, Failure):
                answers.append(pixels)
                continue
            size = model_size
            memory[at : at + count_bytes(size)] = pixels.numpy().reshape(-1)
        at += count_bytes(size)
        sizes.append(size)
        answers.append(None)
    return Decoded(Pixels(buffer[:at], sizes), answers)


def use_one_core() -> None:
    """Limits torch to one core in the calling thread."""
    import torch

    torch.set_num_threads(1)
