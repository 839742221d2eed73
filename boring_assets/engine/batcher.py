"""Fills batches across shard boundaries, runs the encoder, and assigns the embeddings to their shards."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decoding.decoders import Decoded
from boring_assets.engine.job import Job
from boring_assets.engine.model.encoder import Encoder, Pending, bad_vectors
from boring_assets.engine.reader import Chunk
from boring_assets.engine.results import EmbeddedShard, FailedShard, Progress
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ModelError, ShardError

if TYPE_CHECKING:
    from torch import Tensor

_Batch = list[tuple[Job, list[int]]]
"""The shards and rows of a batch's images, in order."""


class Batcher:
    """Fills batches, runs the encoder, and assigns the embeddings to their shards."""

    def __init__(
        self,
        encoder: Encoder,
        pixels: Channel[Chunk],
        finished: Channel[EmbeddedShard | FailedShard],
        progress: Progress,
    ) -> None:
        self._encoder, self._pixels, self._finished, self._progress = encoder, pixels, finished, progress
        self._pieces: list[Tensor] = []
        self._batch: _Batch = []
        self._count = 0
        self._size = encoder.batch_size  # of this batch; the encoder's batch size may shrink meanwhile
        self._pending: deque[tuple[Pending, _Batch]] = deque()
        self._last_answer = time.monotonic()

    def run(self) -> None:
        """Runs until the decoders have no more chunks, then finishes the batches in flight."""
        self._encoder.prepare_thread()
        for chunk, decoded in self._chunks():
            self._take(chunk, decoded)
        if self._count:
            self._submit()
        while self._pending:
            self._collect()
        self._finished.close()

    def _chunks(self) -> Iterator[tuple[Chunk, Decoded | None]]:
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

    def _take(self, chunk: Chunk, decoded: Decoded | None) -> None:
        job = chunk.job
        job.image_bytes += chunk.size
        for row, failure in chunk.failures:
            self._fail(job, row, failure)
        if chunk.total is not None:
            job.total = chunk.total
        if decoded is not None:
            self._take_pixels(chunk, decoded)
        if chunk.error is None:
            self._finish(job)
        elif not job.closed:  # else all rows have answers, and `checked` holds the error
            job.closed = True
            self._finished.put(FailedShard(job.shard, chunk.error))

    def _take_pixels(self, chunk: Chunk, decoded: Decoded) -> None:
        rows = []
        for row, failure in zip(chunk.rows, decoded.answers, strict=True):
            if failure is None:
                rows.append(row)
            else:
                self._fail(chunk.job, row, failure)
        chunk.job.keep(rows, decoded.pixels)
        start = 0
        while start < len(rows):
            taken = rows[start : start + self._size - self._count]
            self._batch.append((chunk.job, taken))
            self._pieces.append(decoded.pixels[start : start + len(taken)])
            self._count += len(taken)
            start += len(taken)
            if self._count == self._size:
                self._submit()

    def _fail(self, job: Job, row: int, failure: Failure) -> None:
        job.fail(row, failure)
        self._progress.failed += 1

    def _submit(self) -> None:
        self._pending.append((self._encoder.submit(self._pieces), self._batch))
        self._pieces, self._batch, self._count = [], [], 0
        self._size = self._encoder.batch_size
        while len(self._pending) > self._encoder.in_flight:
            self._collect()

    def _collect(self) -> None:
        pending, batch = self._pending.popleft()
        vectors = pending.result()
        now = time.monotonic()
        each = (now - self._last_answer) / len(vectors)
        self._last_answer = now
        bad = bad_vectors(vectors)
        start = 0
        for job, rows in batch:
            part = slice(start, start + len(rows))
            start += len(rows)
            job.seconds += each * len(rows)
            good = [row for row, is_bad in zip(rows, bad[part], strict=True) if not is_bad]
            if good:
                job.put(good, vectors[part][~bad[part]])
            self._progress.embedded += len(good)
            for row in sorted(set(rows) - set(good)):
                self._fail(job, row, self._encoder.bad_vector())
            self._finish(job)

    def _finish(self, job: Job) -> None:
        """Passes the shard on when its last row has an answer."""
        if job.closed or not job.complete:
            return
        job.closed = True
        shard = job.finish()
        if error := self._all_bad(shard):
            self._finished.put(FailedShard(shard.shard, error))
            return
        previews = sum(pixels.nbytes for _, pixels in shard.previews)
        before = time.monotonic()
        self._finished.put(shard, shard.embeddings.nbytes + shard.rows.nbytes + previews)
        self._progress.blocked_seconds += time.monotonic() - before

    def _all_bad(self, shard: EmbeddedShard) -> ShardError | None:
        """Why a shard fails whose images all came out of the model without a usable vector."""
        bad = sum(failure.reason is Reason.BAD_VECTOR for failure in shard.failures.values())
        if not bad or len(shard.embedded):
            return None
        model = self._encoder.model
        return ShardError(
            f"The model {model.name} {model.pretrained} (weights {model.digest}) in "
            f"{self._encoder.precision} gave no usable vector for any of the {bad:,} images of "
            f"{shard.shard.uri}: all of them are NaN, infinite or zero. Its checkpoint is broken. Check "
            "BORING_MODEL and BORING_PRETRAINED."
        )


def _wait(chunk: Chunk) -> Decoded | None:
    """Returns the chunk's pixels, or None if it has no images."""
    try:
        return chunk.decoded.result() if chunk.decoded else None
    except BrokenProcessPool as error:
        raise ModelError(
            f"Decoding processes keep dying at {chunk.job.shard.uri}: something kills them, or the "
            "machine is out of memory. Run again. If memory is short, lower BORING_DECODE_WORKERS or "
            "BORING_READ_AHEAD_MB."
        ) from error
