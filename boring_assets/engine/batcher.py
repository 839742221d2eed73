"""Fills batches across shard boundaries, runs the encoder, and assigns the embeddings to their shards."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decoding.decoders import Decoded
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.job import Job
from boring_assets.engine.model.bad_vectors import Pending, bad_vectors
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.reader import Chunk
from boring_assets.engine.results import EmbeddedShard, FailedShard, Options, Progress
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import ShardError

_Batch = list[tuple[Job, list[int]]]
"""The shards and rows of a batch's images, in order."""
_CHECKS = 4


class Batcher:
    """Fills batches, runs the encoder, and assigns the embeddings to their shards."""

    def __init__(
        self,
        encoder: Encoder,
        options: Options,
        chunks: Channel[Chunk],
        finished: Channel[EmbeddedShard | FailedShard],
        progress: Progress,
        check: Callable[[Shard], None] | None = None,
    ) -> None:
        self._encoder, self._options, self._progress = encoder, options, progress
        self._chunks, self._finished = chunks, finished
        self._check, self._checks = check, ThreadPoolExecutor(_CHECKS, "check")
        self._jobs: dict[int, Job] = {}
        self._pieces: list[Pixels] = []
        self._batch: _Batch = []
        self._count = 0
        self._size = encoder.batch_size  # of this batch; the encoder's batch size may shrink meanwhile
        self._pending: deque[tuple[Pending, _Batch]] = deque()
        self._last_answer = time.monotonic()

    def run(self) -> None:
        """Runs until there are no more chunks, then finishes the batches in flight."""
        self._encoder.prepare_thread()
        try:
            for chunk, decoded in self._receive():
                self._take(chunk, decoded)
            if self._count:
                self._submit()
            while self._pending:
                self._collect()
        finally:
            self._checks.shutdown(wait=False)
        self._finished.close()

    def _receive(self) -> Iterator[tuple[Chunk, Decoded | None]]:
        started = False
        while True:
            before = time.monotonic()
            try:
                chunk = self._chunks.get()
            except Closed:
                return
            decoded = chunk.decoded.result() if chunk.decoded else None
            if started:
                self._progress.starved_seconds += time.monotonic() - before
            started = started or bool(self._pending) or self._progress.embedded > 0
            yield chunk, decoded

    def _take(self, chunk: Chunk, decoded: Decoded | None) -> None:
        if chunk.restart:
            return self._give_up(chunk)
        job = self._jobs.get(chunk.number) or self._start(chunk)
        if chunk.error or chunk.end:
            del self._jobs[chunk.number]
        if job.closed:
            return None
        if chunk.error:
            return self._fail_shard(job, chunk.error)
        job.image_bytes += chunk.size
        for row, failure in chunk.failures:
            self._fail(job, row, failure)
        if decoded is not None:
            self._take_pixels(job, chunk.rows, decoded)
        if chunk.end:
            job.end = chunk.end
            self._checks.submit(self._check_source, job)
            self._finish(job)
        return None

    def _start(self, chunk: Chunk) -> Job:
        try:
            job = Job(chunk.shard, chunk.expected_rows, self._encoder.dim, self._options)
        except MemoryError as error:
            job = Job(chunk.shard, 0, self._encoder.dim, self._options)
            self._fail_shard(
                job,
                ShardError(
                    f"The embeddings of {chunk.shard.uri} do not fit into memory ({error}): it has "
                    f"{chunk.expected_rows:,} rows. Split it."
                ),
            )
        self._jobs[chunk.number] = job
        return job

    def _fail_shard(self, job: Job, error: ShardError) -> None:
        job.closed = True
        self._finished.put(FailedShard(job.shard, error))

    def _give_up(self, chunk: Chunk) -> None:
        """Drops the answers of a shard that is read again from its start."""
        job = self._jobs.pop(chunk.number, None)
        if job:
            job.closed = True
            self._progress.failed -= len(job.failures)
            self._progress.embedded -= job.embedded

    def _take_pixels(self, job: Job, chunk_rows: list[int], decoded: Decoded) -> None:
        rows = []
        for row, failure in zip(chunk_rows, decoded.answers, strict=True):
            if failure is None:
                rows.append(row)
            else:
                self._fail(job, row, failure)
        job.keep_previews(rows, decoded.pixels, self._encoder.model.preprocess)
        start = 0
        while start < len(rows):
            taken = rows[start : start + self._size - self._count]
            self._batch.append((job, taken))
            self._pieces.append(decoded.pixels[start : start + len(taken)])
            self._count += len(taken)
            start += len(taken)
            if self._count == self._size:
                self._submit()

    def _check_source(self, job: Job) -> None:
        """Checks that a shard that was read to its end has not changed, in another thread."""
        try:
            if self._check:
                self._check(job.shard)
            job.checked.set_result(None)
        except Exception as error:
            job.checked.set_exception(error)

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
            if job.closed:  # given up
                continue
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
