"""Batches on a CUDA device: resize, and one captured graph for the model; copies run beside the computing.

A graph is a single launch, so that the Python threads that decode cannot slow it. The device copies pixels
from the pinned memory that they were decoded into; the host does not copy them again.
"""

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from boring_assets.engine.decoding.pixels import Pixels, Size
from boring_assets.engine.model.resize import DeviceResize

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)
# Batches under way on the device: one computes while the next is copied and the last is read back.
SLOTS = 3
_BATCHES = (64, 128, 256, 512, 1024)
# A larger batch must be this much faster to be worth its memory.
_WORTH = 1.02


def pin(memory: np.ndarray, device: "torch.device") -> None:
    """Pins memory that was allocated elsewhere, so that the device copies from it on its own.

    It is unpinned when nothing refers to it any more. Memory that cannot be pinned works too, slower.
    """
    import torch

    runtime = torch.cuda.cudart()
    with torch.cuda.device(device):
        if int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)) != 0:
            log.warning("Shared memory cannot be pinned; copies to %s are slower.", device)
            return
    weakref.finalize(memory.base, runtime.cudaHostUnregister, memory.ctypes.data)


def find_batch_size(
    forward: "Callable[[Tensor], Tensor]", blank: "Callable[[int], Tensor]", device: "torch.device"
) -> int:
    """Returns the smallest of 64 to 1,024 images in a batch that runs within 2% of the fastest.

    `blank` returns so many images on the device, uint8 [n, height, width, 3].
    """
    import torch

    def rate(size: int) -> float:
        """Images a second, the best of three."""
        pixels, seconds = blank(size), []
        for _ in range(4):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            forward(pixels)
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        return size / min(seconds[1:])

    best, best_rate = _BATCHES[0], 0.0
    for size in _BATCHES:
        try:
            found = rate(size)
        except torch.OutOfMemoryError:
            break
        if found < best_rate * _WORTH:
            break
        best, best_rate = size, found
    torch.cuda.empty_cache()
    log.info("Batch size %d on %s: %.0f images a second, forward only.", best, device, best_rate)
    return best


class Pending:
    """A submitted batch; `result` waits for it.

    Attributes:
        pixels: Its images as the model gets them, uint8 [count, height, width, 3] on the device, until its
            slot is used again.
    """

    def __init__(self, count: int, slot: "_Slot") -> None:
        self._count, self._slot = count, slot
        self.pixels = slot.pixels[:count]

    def result(self) -> np.ndarray:
        """Returns the embeddings, float32 [count, dim], L2-normalized."""
        self._slot.done.synchronize()
        self._slot.pieces = []
        return self._slot.host_out[: self._count].numpy().copy()


class Graph:
    """The forward of one batch shape as a CUDA graph."""

    def __init__(self, forward: "Callable[[Tensor], Tensor]", like: "Tensor", resize: DeviceResize) -> None:
        """Captures the graph for batches of the shape of `like`, on the device.

        `forward` turns uint8 [n, height, width, 3] into float32 [n, dim].
        """
        import torch

        self.batch_size = len(like)
        self._input, self._resize = like, resize
        self._size: Size = like.shape[1], like.shape[2]
        self._copy_stream = torch.cuda.Stream(like.device)
        self._stream = torch.cuda.Stream(like.device)
        with torch.cuda.device(like.device), torch.cuda.stream(self._stream):
            for _ in range(2):  # libraries choose their kernels before the capture
                forward(self._input)
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Threads that decode may allocate pinned memory meanwhile.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = forward(self._input)
        self._slots = deque(_Slot(self._input, self._output) for _ in range(SLOTS))

    def submit(self, pieces: list[Pixels]) -> Pending:
        """Submits at most `batch_size` images on the host; at most `SLOTS - 1` batches may be in flight."""
        import torch

        for earlier in self._slots:
            earlier.give_pixels_back()
        slot = self._slots[0]
        self._slots.rotate(-1)
        sizes = [size for piece in pieces for size in piece.sizes]
        same = all(size == self._size for size in sizes)
        with torch.cuda.stream(self._copy_stream):
            # The slot's last batch is done, so nothing on the device reads these buffers any more.
            data = slot.pixels.view(-1) if same else slot.originals(sum(len(piece.data) for piece in pieces))
            at = 0
            for piece in pieces:
                data[at : at + len(piece.data)].copy_(piece.data, non_blocking=True)
                at += len(piece.data)
            slot.copied.record(self._copy_stream)
        slot.pieces = pieces
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.copied)
            if not same:
                self._resize(data[:at], sizes, slot.pixels)
            self._input.copy_(slot.pixels, non_blocking=True)
            self._graph.replay()
            slot.host_out.copy_(self._output, non_blocking=True)
            slot.done.record(self._stream)
        return Pending(len(sizes), slot)


class _Slot:
    """Buffers of one batch in flight; reused after its result was read.

    Attributes:
        pixels: The batch as the model gets it, on the device.
        pieces: The images on the host, which must stay there until they are `copied`.
        host_out: The embeddings on the host, pinned, once they are `done`.
    """

    def __init__(self, like_in: "Tensor", like_out: "Tensor") -> None:
        import torch

        self.pixels = torch.zeros_like(like_in)
        self.host_out = torch.empty(like_out.shape, dtype=torch.float32, pin_memory=True)
        self.pieces: list[Pixels] = []
        self.copied = torch.cuda.Event()
        self.done = torch.cuda.Event(blocking=True)  # else the waiting thread keeps a core busy
        self._originals: torch.Tensor | None = None

    def give_pixels_back(self) -> None:
        """Drops the images on the host once they are copied, so that their memory can be used again."""
        if self.pieces and self.copied.query():
            self.pieces = []

    def originals(self, count: int) -> "Tensor":
        """Returns uint8 [n] on the device, at least `count` long, for images of other sizes."""
        import torch

        if self._originals is None or len(self._originals) < count:
            self._originals = None  # frees it first
            self._originals = torch.empty(count + count // 4, dtype=torch.uint8, device=self.pixels.device)
        return self._originals
