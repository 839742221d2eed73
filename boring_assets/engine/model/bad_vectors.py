"""Embeddings that are unusable: found, and computed once more in fp32."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from boring_assets.engine.decoding.decode import resize
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.model.cuda import Pending as OnDevice
from boring_assets.engine.model.load import ClipModel, load_model
from boring_assets.errors import ModelError

if TYPE_CHECKING:
    import open_clip
    from torch import Tensor

log = logging.getLogger(__name__)
# How far the squared length of a usable embedding may be from 1.
_UNIT = 1e-3


class Pending(Protocol):
    """A batch that was submitted to the device."""

    def result(self) -> np.ndarray:
        """Waits for the embeddings, float32 [count, dim], L2-normalized; see `bad_vectors`."""
        ...


def bad_vectors(vectors: np.ndarray) -> np.ndarray:
    """Returns which of float32 [n, dim] are unusable, bool [n]: with NaN, infinity or zero length."""
    with np.errstate(all="ignore"):
        lengths = np.einsum("ij,ij->i", vectors, vectors)
    return ~(np.abs(lengths - 1) < _UNIT)  # a NaN compares false


class Fp32Fallback:
    """Computes the unusable embeddings of a model in another precision again in fp32."""

    def __init__(
        self,
        model: ClipModel,
        precision: str,
        embed: "Callable[[open_clip.CLIP | open_clip.CustomTextCLIP, Tensor], np.ndarray]",
    ) -> None:
        """Loads nothing yet; `embed` takes a copy of the model in fp32, and uint8 [n, height, width, 3]."""
        self.model, self._precision, self._embed = model, precision, embed
        self._module: open_clip.CLIP | open_clip.CustomTextCLIP | None = None
        self._one_at_a_time = Lock()

    def embed(self, pixels: "Tensor") -> np.ndarray:
        """Embeds images on the host or the device in fp32; the first call loads the converted weights again.

        Raises:
            ModelError: The weights cannot be loaded again, are others now, or do not fit into the device.
        """
        import torch

        with self._one_at_a_time:
            try:
                if self._module is None:
                    log.warning(
                        "%s gives NaN or infinite vectors in %s; those images are computed in fp32.",
                        self.model.name,
                        self._precision,
                    )
                    self._module = self._load()
                return self._embed(self._module, pixels)
            except torch.OutOfMemoryError as error:
                raise ModelError(
                    f"{self.model.name} gives NaN or infinite vectors in {self._precision}, and "
                    "the device has too little memory to compute those images again in fp32. Set "
                    "BORING_PRECISION to fp32, or lower BORING_BATCH_SIZE."
                ) from error

    def _load(self) -> "open_clip.CLIP | open_clip.CustomTextCLIP":
        if self._precision == "int8":
            return self.model.module  # it is in fp32 still
        again = load_model(*self.model.loaded_from)
        if again.digest != self.model.digest:
            raise ModelError(
                f"The weights of {self.model.name} have changed since this run began "
                f"({self.model.digest}, now {again.digest}). Start it again."
            )
        return again.module


@dataclass
class Repaired:
    """A batch whose unusable embeddings are computed again; those that are unusable in fp32 too stay so."""

    pending: Pending
    pieces: list[Pixels]
    fallback: Fp32Fallback

    def result(self) -> np.ndarray:
        """Waits for the embeddings."""
        import torch

        vectors = self.pending.result()
        bad = np.flatnonzero(bad_vectors(vectors))
        if not len(bad):
            return vectors
        if isinstance(self.pending, OnDevice):
            pixels = self.pending.pixels[torch.from_numpy(bad).to(self.pending.pixels.device)]
        else:
            images = [piece.image(number) for piece in self.pieces for number in range(len(piece))]
            pixels = torch.cat([resize(images[row][None], self.fallback.model.preprocess) for row in bad])
        vectors = np.array(vectors)
        vectors[bad] = self.fallback.embed(pixels)
        return vectors
