"""The model on its device: uint8 pixels in, L2-normalized float32 embeddings out.

Pixels travel as uint8, a quarter of float32's bytes, and are normalized on the device. On CUDA the whole
way from pixels to embeddings is one captured graph over a batch of fixed shape: a single launch, so that
the Python threads that decode cannot slow it, with copies on a stream of their own.
"""

import gc
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

import numpy as np

from boring_assets.engine.model import ClipModel
from boring_assets.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)
CPU_BATCH = 32
CUDA_BATCHES = (64, 128, 256, 512, 1024)
# A larger batch must be this much faster to be worth its memory.
_WORTH = 1.02
# Batches under way on the device: one computes while the next is copied and the last is read back.
_SLOTS = 3


def pick_device(name: str) -> "torch.device":
    """The device that a setting means.

    Args:
        name: `auto` (CUDA where there is a device, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The device.

    Raises:
        ModelError: There is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"BORING_DEVICE is {name!r}; expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"BORING_DEVICE is {name!r}, but this machine shows {torch.cuda.device_count()} CUDA devices. "
            "Use auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"BORING_DEVICE is {name!r}; expected auto, cpu, cuda or cuda:N.")
    return device


def pick_precision(name: str, device: "torch.device") -> str:
    """`fp32`, `bf16` or `fp16`; `auto` is bf16 where the device computes it faster than fp32, else fp32."""
    import torch

    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


class Pending:
    """A batch that the device was given; `result` waits for it."""

    def __init__(self, count: int, out: "Tensor", done: "torch.cuda.Event | None" = None) -> None:
        self._count, self._out, self._done = count, out, done

    def result(self) -> np.ndarray:
        """Returns the embeddings, float32 [count, dim], L2-normalized."""
        if self._done is not None:
            self._done.synchronize()
        return self._out[: self._count].numpy().copy()


class Encoder:
    """A model ready to embed on one device.

    Attributes:
        model: The model.
        device: Where it runs.
        precision: `fp32`, `bf16` or `fp16`.
        batch_size: Images in a full batch; shrinks when the device's memory runs out.
        dim: Length of an embedding.
        in_flight: Batches that may be unanswered while the next is prepared.
    """

    def __init__(
        self,
        model: ClipModel,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        """Moves the image tower to the device and warms it up.

        Args:
            model: The model; its image tower is moved and converted in place.
            device: See `pick_device`.
            precision: See `pick_precision`.
            batch_size: Images in a batch; `auto` is 32 on the CPU, and on CUDA the smallest of 64 to 1024
                that runs within 2% of the fastest.

        Raises:
            ModelError: There is no such device, or its memory cannot hold the model.
        """
        import torch

        self.model = model
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        numbers = model.preprocess
        std, mean = torch.tensor(numbers.std), torch.tensor(numbers.mean)
        # (pixel / 255 - mean) / std, as one multiplication and one addition.
        self._scale = (1 / (255 * std)).view(3, 1, 1).to(self.device)
        self._shift = (-mean / std).view(3, 1, 1).to(self.device)
        self._graph: _Graph | None = None
        self._threads = torch.get_num_threads()
        self.in_flight = _SLOTS - 1 if self.device.type == "cuda" else 0
        try:
            model.module.visual.to(device=self.device, dtype=self._dtype)
            self.dim = self._forward(self._blank(1)).shape[1]
            self.batch_size = self._find_batch_size() if batch_size == "auto" else batch_size
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{self.device} has too little memory for {model.name}: {error}") from error

    def prepare_thread(self) -> None:
        """Gives the calling thread its share of torch's threads: decoders limit theirs, and it is inherited.

        On the CPU it computes with all of them. For CUDA it only copies, and threads that wait for each
        other beside busy decoders would cost more than they bring.
        """
        import torch

        torch.set_num_threads(self._threads if self.device.type == "cpu" else 1)

    def submit(self, pieces: "list[Tensor]") -> Pending:
        """Gives one batch to the device.

        At most `in_flight` batches may be unanswered when another is submitted.

        Args:
            pieces: uint8 [n, height, width, 3] each, at most `batch_size` images together.

        Returns:
            The batch under way. On the CPU it is finished already.

        Raises:
            ModelError: The device's memory does not suffice for a single image.
        """
        import torch

        try:
            if self.device.type == "cuda":
                return self._captured().submit(pieces)
            pixels = torch.cat(pieces)
            return Pending(len(pixels), self._forward(pixels))
        except (torch.OutOfMemoryError, MemoryError) as error:
            why = str(error)
        # Not within the handler: the exception's frames hold on to the very memory that ran out.
        return self._submit_smaller(torch.cat(pieces), why)

    def _submit_smaller(self, images: "Tensor", why: str) -> Pending:
        import torch

        if len(images) == 1:
            raise ModelError(
                f"{self.device} has too little memory to embed one image with {self.model.name}. Free the "
                f"device, or set BORING_MODEL to a smaller model. ({why})"
            )
        self._graph = None
        self.batch_size = max(1, min(self.batch_size, len(images)) // 2)
        log.warning("The memory of %s ran out; the batch size is now %d.", self.device, self.batch_size)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        parts, start = [], 0
        while start < len(images):  # the batch size may shrink again on the way
            piece = images[start : start + self.batch_size]
            parts.append(self.submit([piece]).result())
            start += len(piece)
        return Pending(len(images), torch.from_numpy(np.concatenate(parts)))

    def _captured(self) -> "_Graph":
        if self._graph is None or self._graph.batch_size != self.batch_size:
            self._graph = None
            self._graph = _Graph(self, self.batch_size)
        return self._graph

    def _forward(self, pixels: "Tensor") -> "Tensor":
        """uint8 [n, height, width, 3] on the device to float32 [n, dim] on it, L2-normalized."""
        import torch

        with torch.inference_mode():
            chw = pixels.permute(0, 3, 1, 2).to(torch.float32)
            images = torch.addcmul(self._shift, chw, self._scale).to(self._dtype)
            features = self.model.module.encode_image(images)  # type: ignore[operator]
            return torch.nn.functional.normalize(features.to(torch.float32), dim=-1)

    def _blank(self, count: int) -> "Tensor":
        import torch

        size = (count, self.model.preprocess.height, self.model.preprocess.width, 3)
        return torch.randint(0, 256, size, dtype=torch.uint8, device=self.device)

    def _find_batch_size(self) -> int:
        if self.device.type == "cpu":
            return CPU_BATCH
        import torch

        best, best_rate = CUDA_BATCHES[0], 0.0
        for size in CUDA_BATCHES:
            try:
                rate = self._measure(size)
            except torch.OutOfMemoryError:
                break
            if rate < best_rate * _WORTH:
                break
            best, best_rate = size, rate
        torch.cuda.empty_cache()
        log.info("Batch size %d on %s: %.0f images a second, forward only.", best, self.device, best_rate)
        return best

    def _measure(self, size: int) -> float:
        """Images a second of the forward alone, the best of three."""
        import torch

        pixels = self._blank(size)
        seconds = []
        for _ in range(4):
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            self._forward(pixels)
            torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return size / min(seconds[1:])


class _Graph:
    """The forward of one batch shape as a CUDA graph, with pinned buffers on both sides."""

    def __init__(self, encoder: Encoder, batch_size: int) -> None:
        import torch

        self.batch_size = batch_size
        self._input = encoder._blank(batch_size)
        self._copy_stream = torch.cuda.Stream(encoder.device)
        self._stream = torch.cuda.Stream(encoder.device)
        with torch.cuda.device(encoder.device), torch.cuda.stream(self._stream):
            for _ in range(2):  # libraries choose their kernels before the capture
                encoder._forward(self._input)
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._output = encoder._forward(self._input)
        self._slots = deque(_Slot(self._input, self._output) for _ in range(_SLOTS))

    def submit(self, pieces: "list[Tensor]") -> Pending:
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
        return Pending(count, slot.host_out, slot.done)


class _Slot:
    """Buffers of one batch under way; reused once its result was taken."""

    def __init__(self, like_in: "Tensor", like_out: "Tensor") -> None:
        import torch

        self.host_in = torch.empty(like_in.shape, dtype=torch.uint8, pin_memory=True)
        self.device_in = torch.empty_like(like_in)
        self.host_out = torch.empty(like_out.shape, dtype=torch.float32, pin_memory=True)
        self.copied = torch.cuda.Event()
        self.done = torch.cuda.Event()
