"""The engine for other pipelines (Ray Data, Daft): encoded images in, embeddings or failures out."""

import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from boring_assets.engine.decoding.decoders import Decoders
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.model.bad_vectors import Pending, bad_vectors
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.samples import Failure, Reason

_CHUNK = 16
_MOST_THREADS = 4


class Answer(NamedTuple):
    """The result for one image.

    Attributes:
        embedding: float32 [dim], L2-normalized; None if the image failed.
        reason: Why it failed, one of `Reason`; None if it is embedded.
        detail: The details of the failure; None if it is embedded.
    """

    embedding: np.ndarray | None
    reason: str | None
    detail: str | None


class Embedder:
    """A model on its device, with its decoders. Create one per process and keep it.

    Attributes:
        dim: Length of an embedding.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str = "",
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | Literal["auto"] = "auto",
        limits: Limits | None = None,
    ) -> None:
        """Loads the model.

        Args:
            model: Name or directory; see `load_model`.
            pretrained: Tag or checkpoint of the weights.
            device: `auto`, `cpu`, `cuda` or `cuda:N`; see `Encoder`.
            precision: `auto`, `fp32`, `bf16`, `fp16`, or `int8` (CPU only).
            batch_size: Images in a batch, or `auto`.
            limits: Limits for one image.

        Raises:
            ModelError: The model or the device is not available.
        """
        loaded = load_model(model, pretrained)
        self._encoder = Encoder(loaded, device, precision, batch_size)
        workers = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._decoders = Decoders(workers, self._encoder.target(), limits or Limits())
        self._one_at_a_time = threading.Lock()
        self.dim = self._encoder.dim

    def embed(self, images: Sequence[bytes | None]) -> list[Answer]:
        """Embeds images. Threads may share the embedder; their calls run one after another.

        Args:
            images: Encoded images of any supported format, any number; None for a missing image.

        Returns:
            For each image, in order, its embedding or why it failed.

        Raises:
            ModelError: The device has failed.
        """
        missing = _failed(Failure(Reason.MISSING_IMAGE, "the image is missing"))
        answers: list[Answer | None] = [None if image else missing for image in images]
        there = [row for row, image in enumerate(images) if image]
        pending: deque[tuple[Pending, list[int]]] = deque()
        with self._one_at_a_time:
            start = 0
            while start < len(there):
                size = self._encoder.batch_size  # shrinks when memory runs out
                pieces, rows = self._decode(images, there[start : start + size], answers)
                start += size
                if rows:
                    pending.append((self._encoder.submit(pieces), rows))
                if len(pending) > self._encoder.in_flight:
                    self._collect(pending, answers)
            while pending:
                self._collect(pending, answers)
        assert None not in answers, "each image has an answer"
        return [answer for answer in answers if answer is not None]

    def _decode(
        self, images: Sequence[bytes | None], rows: list[int], answers: list[Answer | None]
    ) -> tuple[list[Pixels], list[int]]:
        """Returns the pixels of some images and their rows. Writes failures to `answers`."""
        chunks = [rows[at : at + _CHUNK] for at in range(0, len(rows), _CHUNK)]
        work = []
        for chunk in chunks:
            encoded = [images[row] or b"" for row in chunk]
            work.append(self._decoders.submit(encoded, [self._decoders.plan(image) for image in encoded]))
        pieces, kept = [], []
        for chunk, future in zip(chunks, work, strict=True):
            decoded = future.result()
            pieces.append(decoded.pixels)
            for row, failure in zip(chunk, decoded.answers, strict=True):
                if failure is None:
                    kept.append(row)
                else:
                    answers[row] = _failed(failure)
        return pieces, kept

    def _collect(self, pending: "deque[tuple[Pending, list[int]]]", answers: list[Answer | None]) -> None:
        batch, rows = pending.popleft()
        vectors = batch.result()
        for row, vector, bad in zip(rows, vectors, bad_vectors(vectors), strict=True):
            answers[row] = _failed(self._encoder.bad_vector()) if bad else Answer(vector, None, None)


def _failed(failure: Failure) -> Answer:
    return Answer(None, failure.reason.value, failure.detail)
