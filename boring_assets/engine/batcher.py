"""Fills batches across shard boundaries, gives them to the encoder, and gives the shards their rows."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from typing import TYPE_CHECKING

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.encoder import Encoder, Pending
from boring_assets.engine.job import Job
from boring_assets.engine.reader import Chunk
from boring_assets.engine.results import EmbeddedShard, FailedShard, Progress
from boring_assets.engine.samples import Failure
from boring_assets.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


class Batcher:
    """Fills batches, gives them to the encoder, and gives the shards their rows."""

    def __init__(
        self,
        encoder: Encoder,
        pixels: Channel[Chunk],
        finished: Channel[EmbeddedShard | FailedShard],
        progress: Progress,
    ) -> None:
        self._encoder, self._pixels, self._finished, self._progress = encoder, pixels, finished, progress
        self._images: list[Tensor] = []
        self._rows: list[tuple[Job, int]] = []
        self._pending: deque[tuple[Pending, list[tuple[Job, int]]]] = deque()
        self._last_finish = 0.0

    def run(self) -> None:
        """Works until the decoders have no more, then finishes what is under way."""
        self._encoder.prepare_thread()
        for chunk, decoded in self._chunks():
            self._take(chunk, decoded)
        if self._images:
            self._submit()
        while self._pending:
            self._collect()
        self._finished.close()

    def _chunks(self) -> "Iterator[tuple[Chunk, list[Tensor | Failure]]]":
        started = False
        while True:
            before = time.monotonic()
            try:
                chunk = self._pixels.get()
            except Closed:
                return
            decoded = _wait(chunk)
            if started:
                self._progress.starved_seconds += time.monotonic() - before
            started = started or bool(self._pending) or self._progress.embedded > 0
            yield chunk, decoded

    def _take(self, chunk: Chunk, decoded: "list[Tensor | Failure]") -> None:
        job = chunk.job
        job.image_bytes += chunk.size
        for row, failure in chunk.failures:
            self._fail(job, row, failure)
        for row, image in zip(chunk.rows, decoded, strict=True):
            if isinstance(image, Failure):
                self._fail(job, row, image)
                continue
            self._images.append(image)
            self._rows.append((job, row))
            if len(self._images) >= self._encoder.batch_size:
                self._submit()
        if chunk.error is not None:
            job.closed = True
            self._finished.put(FailedShard(job.shard, chunk.error))
        else:
            self._finish(job)

    def _fail(self, job: Job, row: int, failure: Failure) -> None:
        job.failures[row] = failure
        job.waiting -= 1
        self._progress.failed += 1

    def _submit(self) -> None:
        self._pending.append((self._encoder.submit(self._images), self._rows))
        self._images, self._rows = [], []
        while len(self._pending) > self._encoder.in_flight:
            self._collect()

    def _collect(self) -> None:
        pending, rows = self._pending.popleft()
        vectors = pending.result()
        start = 0
        for job, group in groupby(rows, key=lambda pair: pair[0]):
            numbers = [row for _, row in group]
            job.vectors[numbers] = vectors[start : start + len(numbers)]
            job.done[numbers] = True
            job.waiting -= len(numbers)
            start += len(numbers)
            self._finish(job)
        self._progress.embedded += len(rows)

    def _finish(self, job: Job) -> None:
        """Hands the shard over when its last row is answered."""
        if job.waiting or job.closed:
            return
        job.closed = True
        shard = job.finish(self._last_finish)
        self._last_finish = time.monotonic()
        self._finished.put(shard, shard.embeddings.nbytes + shard.rows.nbytes)


def _wait(chunk: Chunk) -> "list[Tensor | Failure]":
    """The chunk's pixels."""
    try:
        return chunk.decoded.result() if chunk.decoded else []
    except BrokenProcessPool as error:
        raise ModelError(
            f"A decoding process died at {chunk.job.shard.uri}: it was killed, or the machine is out of "
            "memory. Run again; where memory is short, set BORING_DECODE_WORKERS or BORING_READ_AHEAD_MB lower."
        ) from error
