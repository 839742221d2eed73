"""Streams the shards' images to the decoders, opening shards ahead of their turn."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decoding.decoders import Decoded, start_decoders
from boring_assets.engine.inputs.exclusions import source_columns
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import OpenShard, open_shard
from boring_assets.engine.job import Job, count_wanted
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.results import Options
from boring_assets.engine.samples import Failure, Shard
from boring_assets.errors import ShardError

CHUNK_IMAGES = 16
_CHUNK_BYTES = 4 * 2**20
_OPEN_AHEAD = 4
# More images than these serve no model, and where they are small, they would take minutes to become so many:
# memory would go on growing for as long.
_AHEAD_IMAGES = 2048
_AHEAD_BATCHES = 8


@dataclass
class Chunk:
    """Some images of one shard on their way through the decoders.

    Attributes:
        job: Their shard.
        rows: Row of each image.
        images: The encoded images, given up once they are with the decoders.
        failures: Rows that failed before they could be decoded.
        size: Encoded bytes.
        decoded: What the decoders make of the images.
        total: How many rows the shard has, known with its last images.
        error: Why the shard cannot be read on.
    """

    job: Job
    rows: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    size: int = 0
    decoded: Future[Decoded] | None = None
    total: int | None = None
    error: ShardError | None = None

    def add(self, row: int, image: bytes | Failure) -> None:
        """Adds one image."""
        if isinstance(image, Failure):
            self.failures.append((row, image))
            return
        self.rows.append(row)
        self.images.append(image)
        self.size += len(image)

    def full(self) -> bool:
        """Whether it is time to send it."""
        return (
            len(self.rows) >= CHUNK_IMAGES or self.size >= _CHUNK_BYTES or len(self.failures) >= CHUNK_IMAGES
        )


class Reader:
    """Streams the shards' images, in chunks, to the decoders."""

    def __init__(
        self,
        options: Options,
        fetcher: Fetcher,
        encoder: Encoder,
        pixels: Channel[Chunk],
        check: Callable[[Shard], None] | None = None,
    ) -> None:
        self._check, self._checks = check, ThreadPoolExecutor(_OPEN_AHEAD, "check")
        self._options, self._fetcher, self._dim, self._pixels = options, fetcher, encoder.dim, pixels
        numbers = encoder.model.preprocess
        self._pixel_bytes = numbers.height * numbers.width * 3
        most = max(_AHEAD_IMAGES, _AHEAD_BATCHES * encoder.batch_size)
        self._least_bytes = options.read_ahead_bytes // most
        self._decoders = start_decoders(
            options.decode_workers, CHUNK_IMAGES, numbers, options.limits, options.read_ahead_bytes
        )

    def read(self, shards: Iterable[Shard]) -> None:
        """Reads all shards, in order.

        Args:
            shards: Which ones.

        Raises:
            Closed: Nobody wants them any more.
        """
        finished = False
        try:
            for shard, opened in self._open_ahead(shards):
                self._read_shard(shard, opened)
            self._pixels.close()
            finished = True
        finally:
            self._checks.shutdown(wait=False)
            self._decoders.close(cancel=not finished)

    def _open_ahead(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, OpenShard | ShardError]]:
        """Opens shards before their turn, so that their first requests cost no time."""
        left = self._options.max_rows
        if left is not None:  # how much of a shard is taken hangs on the one before
            for shard in shards:
                if left <= 0:
                    return
                opened = self._open(shard, left)
                yield shard, opened
                left -= 0 if isinstance(opened, ShardError) else opened.rows.num_rows
            return
        waiting: deque[tuple[Shard, Future[OpenShard | ShardError]]] = deque()
        with ThreadPoolExecutor(_OPEN_AHEAD, "open") as pool:
            try:
                for shard in shards:
                    waiting.append((shard, pool.submit(self._open, shard)))
                    if len(waiting) > _OPEN_AHEAD:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:  # what a run that ends early has opened for nothing
                for _, future in waiting:
                    opened = future.result()
                    if isinstance(opened, OpenShard):
                        opened.close()

    def _open(self, shard: Shard, max_rows: int | None = None) -> OpenShard | ShardError:
        try:
            opened = open_shard(shard, self._options.limits, self._fetcher, max_rows)
            opened.only_rows = shard.only_rows
            return opened
        except ShardError as error:
            return error
        except Exception as error:
            return _unreadable(shard, error)

    def _read_shard(self, shard: Shard, opened: OpenShard | ShardError) -> None:
        if isinstance(opened, ShardError):
            return self._send(Chunk(Job(shard, None, self._dim), error=opened))
        job = Job(shard, None, self._dim)
        try:
            job = Job(shard, opened, self._dim, self._options)
            chunk = Chunk(job)
            for row, image in self._images(opened):
                chunk.add(row, image)
                if chunk.full():
                    self._send(chunk)
                    chunk = Chunk(job)
            chunk.total = count_wanted(opened)
            self._look_again(job)
        except Closed:
            raise
        except ShardError as error:
            chunk = Chunk(job, error=error)
        except Exception as error:
            chunk = Chunk(job, error=_unreadable(shard, error))
        finally:
            opened.close()
        if chunk.error:
            job.checked.set_exception(chunk.error)
        return self._send(chunk)

    def _images(self, opened: OpenShard) -> Iterator[tuple[int, bytes | Failure]]:
        """Yields each wanted row once; what is excluded is not fetched, as far as its row says so."""
        exclusions = self._options.exclusions
        if exclusions and not opened.streamed:  # a stream's columns are known at its end, see `Job.finish`
            excluded = exclusions.find_rows(source_columns(opened.rows, opened.columns))
            yield from ((row, failure) for row, failure in excluded.items() if opened.wants(row))
            wanted = range(opened.rows.num_rows) if opened.only_rows is None else opened.only_rows
            opened.only_rows = frozenset(wanted) - excluded.keys()
        for row, image in opened.images():
            if opened.wants(row):
                yield row, (isinstance(image, bytes) and exclusions.find_image(image)) or image

    def _look_again(self, job: Job) -> None:
        """Has a shard that was read to its end compared with what it was, beside what is still computed."""

        def look() -> None:
            try:
                if self._check:
                    self._check(job.shard)
                job.checked.set_result(None)
            except Exception as error:
                job.checked.set_exception(error)

        self._checks.submit(look)

    def _send(self, chunk: Chunk) -> None:
        weight = max(chunk.size + len(chunk.rows) * self._pixel_bytes, len(chunk.rows) * self._least_bytes)
        if chunk.images:
            chunk.decoded = self._decoders.submit(chunk.images)
            chunk.images = []
        self._pixels.put(chunk, weight)


def _unreadable(shard: Shard, error: Exception) -> ShardError:
    """What filesystems raise is their libraries' own; it costs this shard alone, unless all would meet it."""
    detail = f"{type(error).__name__}: {str(error)[:300]}"
    why = ShardError(f"{shard.uri} or its images cannot be read ({detail}). Try it again.")
    why.__cause__ = error
    return why
