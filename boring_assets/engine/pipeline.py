"""Shards in, embedded shards out: reading, decoding and the model at once, each in threads of its own.

    reader (1 thread)      opens shards ahead of time and streams their images
      │ chunks of images
    decoders (N threads)   bytes to uint8 pixels, or a reason
      │ in order, bounded by bytes
    encoder (1 thread)     fills batches across shard boundaries, gives each shard its rows back
      │ finished shards, bounded by bytes
    the caller             writes and commits, off the model's path

Each row is answered exactly once, with an embedding or a failure, and a shard is finished when its last
row is. Shards share batches, so many small ones cost what one large one costs.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decode import Limits, decode
from boring_assets.engine.encoder import Encoder, Pending
from boring_assets.engine.fetch import Fetcher
from boring_assets.engine.samples import Failure, Shard
from boring_assets.engine.sources import OpenShard, open_shard
from boring_assets.errors import ShardError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_IMAGES = 16
_CHUNK_BYTES = 4 * 2**20
_OPEN_AHEAD = 4
_FINISHED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Options:
    """How much of the machine the pipeline takes.

    Attributes:
        decode_threads: Threads that decode.
        read_ahead_bytes: Most bytes of images, encoded and decoded, waiting for the model.
        limits: The most that one image may cost.
        max_rows: Most rows over all shards, for trying things out; None takes all.
    """

    decode_threads: int = 2
    read_ahead_bytes: int = 512 * 2**20
    limits: Limits = field(default_factory=Limits)
    max_rows: int | None = None


@dataclass
class EmbeddedShard:
    """A finished shard: `rows.num_rows == len(embedded) + len(failures)`.

    Attributes:
        shard: Which one.
        rows: Every column but the image bytes, in input order.
        columns: Which of its columns is its `url`, `key` and `caption`.
        embedded: int64 [n], the embedded rows in rising order.
        embeddings: float32 [n, dim], L2-normalized, one for each of `embedded`.
        failures: What became of every other row, by row.
        seconds: Its share of the run: since its first image, or since the shard before it was finished.
        image_bytes: Encoded bytes of its images.
        cut: Rows of the shard that `max_rows` left out.
    """

    shard: Shard
    rows: pa.Table
    columns: dict[str, str]
    embedded: np.ndarray
    embeddings: np.ndarray
    failures: dict[int, Failure]
    seconds: float
    image_bytes: int
    cut: int


@dataclass(frozen=True)
class FailedShard:
    """A shard that could not be read; nothing of it is embedded."""

    shard: Shard
    error: ShardError


@dataclass
class Progress:
    """What a run has done so far; any thread may read it.

    Attributes:
        embedded: Samples embedded.
        failed: Samples failed.
        starved_seconds: How long the model waited for pixels, its first batch left out.
    """

    embedded: int = 0
    failed: int = 0
    starved_seconds: float = 0.0


def embed_shards(
    shards: Iterable[Shard],
    encoder: Encoder,
    options: Options | None = None,
    fetcher: Fetcher | None = None,
    progress: Progress | None = None,
) -> Iterator[EmbeddedShard | FailedShard]:
    """Embeds shards; each is given back as soon as it is finished.

    Args:
        shards: Which ones, in order.
        encoder: The model on its device.
        options: How much of the machine to take.
        fetcher: Fetches images behind URLs; by default only those below the dataset's own root.
        progress: Counted up as batches are answered.

    Yields:
        Each shard once, nearly in order: its embeddings, or why it could not be read. With `max_rows`,
        shards past the limit are left out.

    Raises:
        ModelError: The device cannot go on.
    """
    options = options or Options()
    fetcher = fetcher or Fetcher(max_bytes=options.limits.bytes)
    pixels: Channel[Future[_Chunk]] = Channel(options.read_ahead_bytes)
    finished: Channel[EmbeddedShard | FailedShard] = Channel(_FINISHED_BYTES)
    reader = _Reader(options, fetcher, encoder, pixels)
    model = _Model(encoder, pixels, finished, progress or Progress())
    threads = [
        threading.Thread(target=_run, args=(work, pixels, finished), name=name, daemon=True)
        for name, work in (("reader", partial(reader.read, shards)), ("encoder", model.run))
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            yield finished.get()
    except Closed:
        return
    finally:
        pixels.close()
        finished.close()
        for thread in threads:
            thread.join()


def _run(work: Callable[[], None], *channels: Channel) -> None:
    """A thread's body: an error of its own reaches the caller; a closed channel just ends it."""
    try:
        work()
    except Closed:
        return
    except BaseException as error:
        for channel in channels:
            channel.close(error)


@dataclass
class _Chunk:
    """Some images of one shard, each bytes, pixels or a failure; or why the shard cannot be read on."""

    job: "_Job"
    images: "list[tuple[int, bytes | Tensor | Failure]]" = field(default_factory=list)
    size: int = 0
    error: ShardError | None = None


class _Job:
    """A shard under way. After the reader has made it, only the encoder's thread changes it."""

    def __init__(self, shard: Shard, source: OpenShard | None, dim: int, cut: int = 0) -> None:
        self.shard, self.source, self.cut = shard, source, cut
        self.started = time.monotonic()
        self.image_bytes = 0
        self.waiting = self.total = source.rows.num_rows if source else 0
        self.vectors = np.empty((self.total, dim), np.float32)
        self.done = np.zeros(self.total, bool)
        self.failures: dict[int, Failure] = {}
        self.closed = False

    def finish(self, since: float) -> EmbeddedShard:
        assert self.source is not None
        embedded = np.flatnonzero(self.done)
        return EmbeddedShard(
            shard=self.shard,
            rows=self.source.rows,
            columns=self.source.columns,
            embedded=embedded,
            embeddings=self.vectors if len(embedded) == self.total else self.vectors[embedded],
            failures=dict(sorted(self.failures.items())),
            seconds=time.monotonic() - max(self.started, since),
            image_bytes=self.image_bytes,
            cut=self.cut,
        )


class _Reader:
    """Streams the shards' images, in chunks, to the decoders."""

    def __init__(
        self, options: Options, fetcher: Fetcher, encoder: Encoder, pixels: Channel[Future[_Chunk]]
    ) -> None:
        self._options, self._fetcher, self._dim, self._pixels = options, fetcher, encoder.dim, pixels
        self._numbers = encoder.model.preprocess
        self._pixel_bytes = self._numbers.height * self._numbers.width * 3
        self._decoders = ThreadPoolExecutor(options.decode_threads, "decode", _one_thread)

    def read(self, shards: Iterable[Shard]) -> None:
        try:
            for shard, opened in self._open_ahead(shards):
                self._read_shard(shard, opened)
        except BaseException:
            self._decoders.shutdown(wait=False, cancel_futures=True)
            raise
        self._pixels.close()
        self._decoders.shutdown(wait=False)

    def _open_ahead(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, OpenShard | ShardError]]:
        """Opens shards before their turn, so that their first requests cost no time."""
        left = self._options.max_rows
        if left is not None:  # how much of a shard is taken hangs on the one before
            for shard in shards:
                if left <= 0:
                    return
                opened = self._open(shard, left)
                left -= 0 if isinstance(opened, ShardError) else opened.rows.num_rows
                yield shard, opened
            return
        waiting: deque[tuple[Shard, Future[OpenShard | ShardError]]] = deque()
        with ThreadPoolExecutor(_OPEN_AHEAD, "open") as pool:
            for shard in shards:
                waiting.append((shard, pool.submit(self._open, shard)))
                if len(waiting) > _OPEN_AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for shard, future in waiting:
                yield shard, future.result()

    def _open(self, shard: Shard, most_rows: int | None = None) -> OpenShard | ShardError:
        try:
            return open_shard(shard, self._options.limits, self._fetcher, most_rows)
        except ShardError as error:
            return error

    def _read_shard(self, shard: Shard, opened: OpenShard | ShardError) -> None:
        if isinstance(opened, ShardError):
            return self._send(_Chunk(_Job(shard, None, self._dim), error=opened))
        job = _Job(shard, opened, self._dim, opened.cut)
        chunk = _Chunk(job)
        try:
            for row, image in opened.images():
                chunk.images.append((row, image))
                chunk.size += len(image) if isinstance(image, bytes) else 0
                if len(chunk.images) >= _CHUNK_IMAGES or chunk.size >= _CHUNK_BYTES:
                    self._send(chunk)
                    chunk = _Chunk(job)
        except (ShardError, OSError, pa.ArrowException) as error:
            if not isinstance(error, ShardError):
                detail = f"{type(error).__name__}: {str(error)[:300]}"
                error = ShardError(f"The images of {shard.uri} cannot be read ({detail}). Try it again.")
            chunk = _Chunk(job, error=error)
        finally:
            opened.close()
        return self._send(chunk)

    def _send(self, chunk: _Chunk) -> None:
        weight = chunk.size + len(chunk.images) * self._pixel_bytes
        self._pixels.put(self._decoders.submit(self._decode, chunk), weight)

    def _decode(self, chunk: _Chunk) -> _Chunk:
        numbers, limits = self._numbers, self._options.limits
        chunk.images = [
            (row, decode(image, numbers, limits) if isinstance(image, bytes) else image)
            for row, image in chunk.images
        ]
        return chunk


def _one_thread() -> None:
    """A decoder takes one core; torch would give each of its calls all of them."""
    import torch

    torch.set_num_threads(1)


class _Model:
    """Fills batches, gives them to the encoder, and gives the shards their rows."""

    def __init__(
        self,
        encoder: Encoder,
        pixels: Channel[Future[_Chunk]],
        finished: Channel[EmbeddedShard | FailedShard],
        progress: Progress,
    ) -> None:
        self._encoder, self._pixels, self._finished, self._progress = encoder, pixels, finished, progress
        self._images: list[Tensor] = []
        self._rows: list[tuple[_Job, int]] = []
        self._pending: deque[tuple[Pending, list[tuple[_Job, int]]]] = deque()
        self._last_finish = 0.0

    def run(self) -> None:
        self._encoder.prepare_thread()
        for chunk in self._chunks():
            self._take(chunk)
        if self._images:
            self._submit()
        while self._pending:
            self._collect()
        self._finished.close()

    def _chunks(self) -> Iterator[_Chunk]:
        started = False
        while True:
            before = time.monotonic()
            try:
                chunk = self._pixels.get().result()
            except Closed:
                return
            if started:
                self._progress.starved_seconds += time.monotonic() - before
            started = started or bool(self._pending) or self._progress.embedded > 0
            yield chunk

    def _take(self, chunk: _Chunk) -> None:
        job = chunk.job
        job.image_bytes += chunk.size
        for row, image in chunk.images:
            if isinstance(image, Failure):
                job.failures[row] = image
                job.waiting -= 1
                self._progress.failed += 1
                continue
            self._images.append(image)  # type: ignore[arg-type]
            self._rows.append((job, row))
            if len(self._images) >= self._encoder.batch_size:
                self._submit()
        if chunk.error is not None:
            job.closed = True
            self._finished.put(FailedShard(job.shard, chunk.error))
        else:
            self._finish(job)

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

    def _finish(self, job: _Job) -> None:
        """Hands the shard over when its last row is answered."""
        if job.waiting or job.closed:
            return
        job.closed = True
        shard = job.finish(self._last_finish)
        self._last_finish = time.monotonic()
        self._finished.put(shard, shard.embeddings.nbytes + shard.rows.nbytes)
