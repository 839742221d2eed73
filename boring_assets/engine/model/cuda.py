"""Batches on a CUDA device: one captured graph, pinned buffers on both sides, copies beside the computing.

A graph is a single launch, so that the Python threads that decode cannot slow it.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Batches under way on the device: one computes while the next is copied and the last is read back.
SLOTS = 3


class Pending:
    """A submitted batch; `result` waits for it.

    Attributes:
        pixels: Its images, uint8 [count, height, width, 3] on the host, until its slot is used again.
    """

    def __init__(self, count: int, slot: "_Slot") -> None:
        self._count, self._out, self._done = count, slot.host_out, slot.done
        self.pixels = slot.host_in[:count]

    def result(self) -> np.ndarray:
        """Returns the embeddings, float32 [count, dim], L2-normalized."""
        self._done.synchronize()
        return self._out[: self._count].numpy().copy()


class Graph:
    """The forward of one batch shape as a CUDA graph.

    Attributes:
        batch_size: Images in its batch.
    """

    def __init__(self, forward: "Callable[[Tensor], Tensor]", like: "Tensor") -> None:
        """Captures the graph.

        Args:
            forward: uint8 [n, height, width, 3] to float32 [n, dim], both on the device.
            like: A batch of the shape that it is captured for, on the device.
        """
        import torch

        self.batch_size = len(like)
        self._input = like
        self._copy_stream = torch.cuda.Stream(like.device)
        self._stream = torch.cuda.Stream(like.device)
        with torch.cuda.device(like.device), torch.cuda.stream(self._stream):
            for _ in range(2):  # libraries choose their kernels before the capture
                forward(self._input)
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._output = forward(self._input)
        self._slots = deque(_Slot(self._input, self._output) for _ in range(SLOTS))

    def submit(self, pieces: "list[Tensor]") -> Pending:
        """Submits a batch; at most `SLOTS - 1` others may be in flight.

        Args:
            pieces: uint8 [n, height, width, 3] each, on the host, at most `batch_size` images together.
        """
        import torch

        slot = self._slots[0]
        self._slots.rotate(-1)
        count = sum(map(len, pieces))
        torch.cat(pieces, out=slot.host_in[:count])
        with torch.cuda.stream(self._copy_stream):
            slot.device_in[:count].copy_(slot.host_in[:count], non_blocking=True)
            slot.copied.record(self._copy_stream)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.copied)
            self._input.copy_(slot.device_in, non_blocking=True)
            self._graph.replay()
            slot.host_out.copy_(self._output, non_blocking=True)
            slot.done.record(self._stream)
        return Pending(count, slot)


class _Slot:
    """Buffers of one batch in flight; reused after its result was read."""

    def __init__(self, like_in: "Tensor", like_out: "Tensor") -> None:
        import torch

        self.host_in = torch.empty(like_in.shape, dtype=torch.uint8, pin_memory=True)
        self.device_in = torch.empty_like(like_in)
        self.host_out = torch.empty(like_out.shape, dtype=torch.float32, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.done = torch.cuda.Event()
