"""Fills batches across shard boundaries, runs the encoder, and assigns the embeddings to their shards."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decoding.decode import Preprocess, resize
from boring_assets.engine.decoding.decoders import Decoded, use_one_core
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.model.bad_vectors import Pending, bad_vectors
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.reader import Chunk
from boring_assets.engine.results import EmbeddedShard, FailedShard, Options, Progress, ShardRows
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import ShardError


class Job:
    """A shard in progress. Only the encoder's thread uses it.

    Attributes:
        end: Its rows, once it was read to its end.
        failures: Why rows failed, by row number.
        embedded: How many rows have an embedding.
        seconds: Its share of the run's time so far.
        image_bytes: Size of its encoded images so far.
        closed: Whether it is finished, or given up.
        checked: Done when the source was checked after reading. Holds an error if it has changed.
    """

    def __init__(self, shard: Shard, expected_rows: int, dim: int, options: Options) -> None:
        """Starts a shard. It may have more rows than are expected."""
        self.shard, self._options = shard, options
        self.end: ShardRows | None = None
        self.failures: dict[int, Failure] = {}
        self.embedded = 0
        self.seconds = 0.0
        self.image_bytes = 0
        self.closed = False
        self.checked: Future[None] | None = None
        self._previews: list[tuple[int, np.ndarray]] = []
        self._vectors = np.empty((expected_rows, dim), np.float32)
        self._done = np.zeros(expected_rows, bool)

    @property
    def complete(self) -> bool:
        """Whether all wanted rows are answered, and no more are to come."""
        if self.end is None:
            return False
        rows, only = self.end.rows.num_rows, self.shard.only_rows
        wanted = rows if only is None else sum(row < rows for row in only)
        return self.embedded + len(self.failures) == wanted

    def put(self, rows: list[int], vectors: np.ndarray) -> None:
        """Answers rows with their embeddings, float32 [n, dim]."""
        if (needed := max(rows) + 1) > len(self._done):
            more = max(needed, 2 * len(self._done)) - len(self._done)
            self._vectors = np.concatenate([self._vectors, np.empty((more, vectors.shape[1]), np.float32)])
            self._done = np.concatenate([self._done, np.zeros(more, bool)])
        self._vectors[rows] = vectors
        self._done[rows] = True
        self.embedded += len(rows)

    def keep_previews(self, rows: list[int], pixels: Pixels, preprocess: Preprocess) -> None:
        """Copies the first images of the shard for its contact sheet, as the model gets them."""
        wanted = self._options.previews - len(self._previews)
        for number, row in enumerate(rows[: max(0, wanted)]):
            image = resize(pixels.image(number)[None], preprocess)[0]
            self._previews.append((row, image.numpy().copy()))

    def finish(self) -> EmbeddedShard:
        """Returns the finished shard."""
        assert self.end is not None
        if self.end.streamed:
            self._exclude(self.end)
        embedded = np.flatnonzero(self._done)
        return EmbeddedShard(
            shard=self.shard,
            rows=self.end.rows,
            columns=self.end.columns,
            embedded=embedded,
            embeddings=self._vectors if len(embedded) == len(self._vectors) else self._vectors[embedded],
            failures=dict(sorted(self.failures.items())),
            seconds=self.seconds,
            image_bytes=self.image_bytes,
            cut=self.end.cut,
            checked=self.checked,
            previews=[(row, pixels) for row, pixels in self._previews if row not in self.failures],
            notes=self.end.notes,
        )

    def _exclude(self, end: ShardRows) -> None:
        """Makes failures of the excluded rows of a stream, whose columns are known only now."""
        excluded = self._options.exclusions.find_rows(end.rows, end.columns)
        for row, failure in excluded.items():
            if self.shard.only_rows is None or row in self.shard.only_rows:
                self.failures[row] = failure
        self._done[[row for row in excluded if row < len(self._done)]] = False


_Batch = list[tuple[Job, list[int]]]
"""The shards and rows of a batch's images, in order."""
_CHECKS = 4


class Batcher:
    """Does that in one thread; see the module."""

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
        use_one_core()  # with more, the copies into pinned memory would fight the decoders for cores
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
            if self._check:
                job.checked = self._checks.submit(self._check, job.shard)
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

    def _fail(self, job: Job, row: int, failure: Failure) -> None:
        job.failures[row] = failure
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
