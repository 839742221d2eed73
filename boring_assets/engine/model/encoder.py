"""The model on its device: uint8 pixels in, L2-normalized float32 embeddings out.

Pixels travel as uint8, a quarter of float32's bytes, and are normalized on the device. On CUDA the device
also resizes, and the way from there to embeddings is one captured graph over a batch of fixed shape
(`cuda.py`). On the CPU several batches are computed at once, each by few cores: threads that share one batch
wait for each other at every layer, and busy decoders make those waits long.
"""

import gc
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np

from boring_assets.engine.decoding.arena import Arena
from boring_assets.engine.decoding.decoders import Target
from boring_assets.engine.decoding.pixels import Pixels, stack, take
from boring_assets.engine.model.bad_vectors import Fp32Fallback, Pending, Repaired
from boring_assets.engine.model.cuda import SLOTS, Graph, find_batch_size, pin
from boring_assets.engine.model.devices import pick_device, pick_precision, torch_dtype
from boring_assets.engine.model.int8 import Int8Tower
from boring_assets.engine.model.load import ClipModel
from boring_assets.engine.model.resize import DeviceResize
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ModelError

if TYPE_CHECKING:
    import open_clip
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)
CPU_BATCH = 16
# Batches that the CPU computes at once; with more cores, each batch is given several.
_CPU_STREAMS = 8


class Encoder:
    """A model ready to embed on one device.

    Attributes:
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        batch_size: Images in a full batch; shrinks when the device's memory runs out.
        dim: Length of an embedding.
        in_flight: Batches that may be unanswered while the next is prepared.
        size: Height and width of the model's input.
    """

    def __init__(
        self,
        model: ClipModel,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
    ) -> None:
        """Moves the model's image tower to the device, converts it in place and warms it up.

        Args:
            model: The model; its image tower is moved and converted in place.
            device: See `pick_device`.
            precision: See `pick_precision`.
            batch_size: Images in a batch; `auto` is 16 on the CPU, and on CUDA the smallest of 64 to 1024
                that runs within 2% of the fastest.

        Raises:
            ModelError: There is no such device, or its memory cannot hold the model.
        """
        import torch

        self.model = model
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self._dtype = torch_dtype(self.precision)
        numbers = model.preprocess
        self.size = numbers.height, numbers.width
        std, mean = torch.tensor(numbers.std), torch.tensor(numbers.mean)
        # (pixel / 255 - mean) / std, as one multiplication and one addition.
        self._scale = (1 / (255 * std)).view(3, 1, 1).to(self.device)
        self._shift = (-mean / std).view(3, 1, 1).to(self.device)
        self._graph: Graph | None = None
        self._int8: Int8Tower | None = None
        self._streams: ThreadPoolExecutor | None = None
        share = 1
        if self.device.type == "cuda":
            self.in_flight = SLOTS - 1
        else:
            cores = torch.get_num_threads()
            self.in_flight = min(cores, _CPU_STREAMS)
            share = cores // self.in_flight
            self._streams = ThreadPoolExecutor(self.in_flight, "forward", torch.set_num_threads, (share,))
        self._fp32 = None if self.precision == "fp32" else Fp32Fallback(model, self.precision, self._in_fp32)
        try:
            model.module.visual.to(device=self.device, dtype=self._dtype)
            if self.precision == "int8":
                images = torch.zeros(2, 3, *self.size)
                self._int8 = Int8Tower(model.module.visual, images, share, model.name)
            self.dim = self._forward(self._blank(1)).shape[1]
            if batch_size != "auto":
                self.batch_size = batch_size
            elif self.device.type == "cpu":
                self.batch_size = CPU_BATCH
            else:
                self.batch_size = find_batch_size(self._forward, self._blank, self.device)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{self.device} has too little memory for {model.name}: {error}") from error

    def target(self) -> Target:
        """Returns what images are to be decoded to."""
        if self.device.type == "cuda":
            return Target(self.model.preprocess, keep_size=True, new_buffer=self._new_pinned)
        return Target(self.model.preprocess)

    def pin(self, arena: Arena) -> None:
        """Lets a CUDA device copy from shared memory on its own, as long as the memory is there."""
        if self.device.type == "cuda":
            pin(arena.memory, self.device)

    def _new_pinned(self, count: int) -> "Tensor":
        import torch

        # Pinned memory is used again, and belongs to the calling thread's device.
        with torch.cuda.device(self.device):
            return torch.empty(count, dtype=torch.uint8, pin_memory=True)

    def submit(self, pieces: list[Pixels]) -> Pending:
        """Submits one batch to the device: at most `batch_size` images, as `target` says.

        At most `in_flight` batches may be unanswered when another is submitted. The answer's `result` raises
        ModelError as this does.

        Raises:
            ModelError: The device's memory does not suffice for a single image.
        """
        pending = self._submit(pieces)
        return Repaired(pending, pieces, self._fp32) if self._fp32 else pending

    def _submit(self, pieces: list[Pixels]) -> Pending:
        import torch

        if self._streams is not None:
            return self._streams.submit(self._on_cpu, pieces)
        try:
            return self._captured().submit(pieces)
        except torch.OutOfMemoryError as error:
            why = str(error)
        # Not within the handler: the exception's frames hold on to the very memory that ran out.
        self._graph = None
        gc.collect()
        torch.cuda.empty_cache()
        answer: Future[np.ndarray] = Future()
        answer.set_result(self._in_parts(pieces, why, lambda part: self._submit(part).result()))
        return answer

    def _on_cpu(self, pieces: list[Pixels]) -> np.ndarray:
        import torch

        try:
            return self._forward(stack(pieces, self.size)).numpy()
        except (torch.OutOfMemoryError, MemoryError) as error:
            why = str(error)
        return self._in_parts(pieces, why, self._on_cpu)

    def _in_parts(
        self, pieces: list[Pixels], why: str, embed: Callable[[list[Pixels]], np.ndarray]
    ) -> np.ndarray:
        """Embeds a batch that did not fit into memory in smaller ones; later batches have that size too."""
        count = sum(map(len, pieces))
        if count == 1:
            raise ModelError(
                f"{self.device} has too little memory to embed one image with {self.model.name}. Free the "
                f"device, or set BORING_MODEL to a smaller model. ({why})"
            )
        self.batch_size = min(self.batch_size, count // 2)
        log.warning("The memory of %s ran out; the batch size is now %d.", self.device, self.batch_size)
        parts = []
        while pieces:  # the batch size may shrink again on the way
            part, pieces = take(pieces, self.batch_size)
            parts.append(embed(part))
        return np.concatenate(parts)

    def bad_vector(self) -> Failure:
        """Returns the failure of an image whose vector is unusable."""
        tried = self.precision if self.precision == "fp32" else f"{self.precision} and in fp32"
        return Failure(
            Reason.BAD_VECTOR, f"{self.model.name} gives NaN, infinity or a vector of length zero in {tried}"
        )

    def _in_fp32(self, module: "open_clip.CLIP | open_clip.CustomTextCLIP", pixels: "Tensor") -> np.ndarray:
        """Embeds uint8 [n, height, width, 3] by another copy of the model, in fp32."""
        import torch

        module.visual.to(self.device)
        parts = [
            self._forward(part.to(self.device), module.encode_image, torch.float32).cpu().numpy()
            for part in pixels.split(CPU_BATCH)
        ]
        return np.concatenate(parts)

    def _captured(self) -> Graph:
        if self._graph is None or self._graph.batch_size != self.batch_size:
            self._graph = None
            resize = DeviceResize(self.model.preprocess, self.device)
            self._graph = Graph(self._forward, self._blank(self.batch_size), resize)
        return self._graph

    def _forward(
        self,
        pixels: "Tensor",
        encode: "Callable[[Tensor], Tensor] | None" = None,
        dtype: "torch.dtype | None" = None,
    ) -> "Tensor":
        """uint8 [n, height, width, 3] on the device to float32 [n, dim] on it, L2-normalized.

        `encode` and `dtype` are the encoder's own by default.
        """
        import torch

        with torch.inference_mode():
            chw = pixels.permute(0, 3, 1, 2).to(torch.float32)
            images = torch.addcmul(self._shift, chw, self._scale).to(dtype or self._dtype)
            features = (encode or self._int8 or self.model.module.encode_image)(images)
            return torch.nn.functional.normalize(features.to(torch.float32), dim=-1)

    def _blank(self, count: int) -> "Tensor":
        import torch

        return torch.randint(0, 256, (count, *self.size, 3), dtype=torch.uint8, device=self.device)
