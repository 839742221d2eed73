"""Reads shards and hands their images to the decoders, opening shards ahead of their turn."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decoding.decoders import Decoded, Decoders, Target
from boring_assets.engine.decoding.pixels import count_bytes
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import OpenShard, open_shard, unreadable
from boring_assets.engine.results import Options, ShardRows
from boring_assets.engine.samples import Failure, Shard
from boring_assets.errors import ShardError

# Large chunks cost less for each image; small ones spread a batch over all decoders.
CHUNK_IMAGES = 16
_MOST_IMAGES = 64
_CHUNK_BYTES = 4 * 2**20
_OPEN_AHEAD = 4
# More images than these serve no model, and where they are small, they would take minutes to become so many:
# memory would go on growing for as long.
_AHEAD_IMAGES = 2048
_AHEAD_BATCHES = 8


@dataclass(frozen=True)
class Assignment:
    """A shard to read, by its number in the run."""

    number: int
    shard: Shard
    skip: Mapping[int, Failure] = field(default_factory=dict)
    """Rows that are not decoded, and the failure that each gets."""


@dataclass
class Chunk:
    """Some images of one shard on their way through the decoders.

    Attributes:
        number: The number of their shard in the run.
        expected_rows: How many rows the shard has, if that is known when it is opened; else 0.
        rows: Row of each image.
        images: The encoded images, given up once they are with the decoders.
        failures: Rows that failed before they could be decoded.
        size: Encoded bytes.
        end: The shard's rows, in its last chunk.
        error: Why the shard cannot be read on.
        restart: Whether the shard is read again from its start, and its answers so far do not count.
        weight: Bytes that it takes in a channel.
    """

    number: int
    shard: Shard
    expected_rows: int = 0
    rows: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    size: int = 0
    decoded: Future[Decoded] | None = None
    end: ShardRows | None = None
    error: ShardError | None = None
    restart: bool = False
    weight: int = 1

    def add(self, row: int, image: bytes | Failure) -> None:
        """Adds one image."""
        if isinstance(image, Failure):
            self.failures.append((row, image))
            return
        self.rows.append(row)
        self.images.append(image)
        self.size += len(image)

    def full(self, most: int) -> bool:
        """Whether it is time to send it."""
        return len(self.rows) >= most or self.size >= _CHUNK_BYTES or len(self.failures) >= most


Opened = tuple[Assignment, Future[OpenShard | ShardError]]
"""A shard, and what opening it gives."""


class Reader:
    """Reads shards and sends their images, in chunks, through the decoders."""

    def __init__(
        self,
        options: Options,
        fetcher: Fetcher,
        target: Target,
        batch_size: int,
        chunks: Channel[Chunk],
        decoders: Decoders | None = None,
    ) -> None:
        """Starts the decoders; others than those of `options` get one image at a time."""
        self._options, self._fetcher, self._chunks = options, fetcher, chunks
        self._least_bytes = options.read_ahead_bytes // max(_AHEAD_IMAGES, _AHEAD_BATCHES * batch_size)
        self._chunk_images = 1 if decoders else min(_MOST_IMAGES, max(CHUNK_IMAGES, batch_size // 4))
        self._opening = ThreadPoolExecutor(_OPEN_AHEAD, "open")
        self._decoders = decoders or Decoders(options.decode_workers, target, options.limits)

    def read(self, shards: Iterable[Opened]) -> None:
        """Reads all shards, in order, from `open_ahead` or `open`, and closes the channel."""
        finished = False
        try:
            for assigned, opened in shards:
                self._read_shard(assigned, opened.result())
            self._chunks.close()
            finished = True
        finally:
            self._opening.shutdown(wait=False)
            self._decoders.close(cancel=not finished)

    def open_ahead(self, shards: Iterable[Assignment]) -> Iterator[Opened]:
        """Opens shards before their turn, so that their first requests cost no time."""
        left = self._options.max_rows
        if left is not None:  # how many rows of a shard are taken depends on the shard before
            for assigned in shards:
                if left <= 0:
                    return
                future = self._opening.submit(self._open, assigned.shard, left)
                yield assigned, future
                opened = future.result()
                left -= 0 if isinstance(opened, ShardError) else opened.rows.num_rows
            return
        waiting: deque[Opened] = deque()
        try:
            for assigned in shards:
                waiting.append(self.open(assigned))
                if len(waiting) > _OPEN_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # of a run that ends early
            for _, future in waiting:
                opened = future.result()
                if isinstance(opened, OpenShard):
                    opened.close()

    def open(self, assigned: Assignment) -> Opened:
        """Starts to open a shard in another thread."""
        return assigned, self._opening.submit(self._open, assigned.shard)

    def _open(self, shard: Shard, max_rows: int | None = None) -> OpenShard | ShardError:
        try:
            opened = open_shard(shard, self._options.limits, self._fetcher, max_rows)
            opened.only_rows = shard.only_rows
            return opened
        except Exception as error:
            return unreadable(shard, error)

    def _read_shard(self, assigned: Assignment, opened: OpenShard | ShardError) -> None:
        number, shard = assigned.number, assigned.shard
        if isinstance(opened, ShardError):
            return self._send(Chunk(number, shard, error=opened))
        expected = 0 if opened.streamed else opened.rows.num_rows
        try:
            chunk = Chunk(number, shard, expected)
            for row, image in self._images(opened):
                chunk.add(row, assigned.skip.get(row, image))
                if chunk.full(self._chunk_images):
                    self._send(chunk)
                    chunk = Chunk(number, shard, expected)
            chunk.end = ShardRows(opened.rows, opened.columns, opened.cut, opened.notes, opened.streamed)
        except Closed:
            raise
        except Exception as error:
            chunk = Chunk(number, shard, error=unreadable(shard, error))
        finally:
            opened.close()
        return self._send(chunk)

    def _images(self, opened: OpenShard) -> Iterator[tuple[int, bytes | Failure]]:
        """Yields each wanted row once; what is excluded is not fetched, as far as its row says so."""
        exclusions = self._options.exclusions
        if exclusions and not opened.streamed:  # a stream's columns are known at its end, see `Job.finish`
            excluded = exclusions.find_rows(opened.rows, opened.columns)
            yield from ((row, failure) for row, failure in excluded.items() if opened.wants(row))
            wanted = range(opened.rows.num_rows) if opened.only_rows is None else opened.only_rows
            opened.only_rows = frozenset(wanted) - excluded.keys()
        for row, image in opened.images():
            if opened.wants(row):
                yield row, (isinstance(image, bytes) and exclusions.find_image(image)) or image

    def _send(self, chunk: Chunk) -> None:
        pixel_bytes = 0
        if chunk.images:
            sizes = [self._decoders.plan(image) for image in chunk.images]
            pixel_bytes = sum(map(count_bytes, sizes))
            chunk.decoded = self._decoders.submit(chunk.images, sizes, chunk.rows)
            chunk.images = []
        chunk.weight = max(chunk.size + pixel_bytes, len(chunk.rows) * self._least_bytes)
        self._chunks.put(chunk, chunk.weight)
