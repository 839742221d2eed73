"""Reads and decodes shards in processes of their own, for more cores than threads of one process can use.

Decoding releases the GIL, but the Python code around it does not; see "Decisions" in docs/architecture.md. If
a process dies, its unfinished shards are read again from their start, each in a process of its own that
decodes one image at a time and marks which. An image at which that process dies again is recorded as failed.
"""

import logging
import select
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from multiprocessing import forkserver, get_context
from typing import TYPE_CHECKING

from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.decoding.arena import Arena
from boring_assets.engine.decoding.decoders import Decoded, new_buffer
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.reader import Assignment, Chunk
from boring_assets.engine.reader_process import Message, Setup, serve
from boring_assets.engine.results import Options
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ModelError, ShardError

if TYPE_CHECKING:
    from boring_assets.engine.model.encoder import Encoder

log = logging.getLogger(__name__)
THREADS = 4
"""Decoding threads of one process."""
_CAREFUL_BYTES = 64 * 2**20
_POLL_MILLISECONDS = 500
# A row or a shard is given up when its process has died so often, besides the first time.
_MOST_DEATHS = 3
_MOST_FALSE_STARTS = 5
# Room for an image that is resized on the device: those of 256 to 300 pixels take less.
_KEPT_BYTES = 256 * 2**10


def start_server() -> None:
    """Starts the process that the reader processes are forked from, so that its imports run early.

    A plain fork would copy CUDA's state and held locks. The server is a clean process with torch imported.
    """
    get_context("forkserver").set_forkserver_preload(["torch", "boring_assets.engine.reader_process"])
    forkserver.ensure_running()


class ReaderProcesses:
    """Reads shards in several processes; see the module."""

    def __init__(
        self, options: Options, fetcher: Fetcher, encoder: "Encoder", chunks: Channel[Chunk]
    ) -> None:
        """Computes sizes. Processes start with `read`; `max_rows` of the options is not supported."""
        count = -(-options.decode_workers // THREADS)
        workers = options.decode_workers
        self._threads = [workers // count + (number < workers % count) for number in range(count)]
        target = encoder.target()
        each = _KEPT_BYTES if target.keep_size else 3 * target.preprocess.height * target.preprocess.width
        in_batches = (1 + encoder.in_flight) * encoder.batch_size * each
        self._arena_bytes = min(options.read_ahead_bytes + in_batches, _shared_memory_left()) // count
        # Half of what is read ahead waits in the processes, and half of it here.
        options = replace(options, read_ahead_bytes=options.read_ahead_bytes // (2 * count))
        fetcher = replace(fetcher, parallel=max(1, fetcher.parallel // count))
        target = replace(target, new_buffer=new_buffer)  # the encoder's may not go to other processes
        self._setup = Setup(options, fetcher, target, encoder.batch_size // count)
        self._pin, self._chunks = encoder.pin, chunks
        self._false_starts = 0

    def read(self, shards: Iterable[Assignment]) -> None:
        """Reads all shards, and closes the channel; raises ModelError if the processes keep dying."""
        start_server()
        waiting = _Shared(shards)
        with ThreadPoolExecutor(len(self._threads), "reader-process") as pool:
            for future in [pool.submit(self._serve, waiting, threads) for threads in self._threads]:
                future.result()
        self._chunks.close()

    def _serve(self, waiting: "_Shared", threads: int) -> None:
        """Keeps one process at work until no shard is left."""
        setup = replace(self._setup, threads=threads)
        try:
            for first in waiting:
                lost, _ = self._run(chain([first], waiting), setup)
                if lost:
                    log.warning("A process that reads shards has died; %d are read again.", len(lost))
                for assignment in lost:
                    self._read_carefully(assignment)
        except Closed:
            raise
        except BaseException as error:
            self._chunks.close(error)  # the other processes end too
            raise

    def _run(self, waiting: Iterator[Assignment], setup: Setup) -> tuple[list[Assignment], int | None]:
        """Has a process read shards; returns those that it has not finished, and the row it was decoding."""
        reader_process = _ReaderProcess(
            setup, _CAREFUL_BYTES if setup.careful else self._arena_bytes, self._pin
        )
        try:
            lost = reader_process.run(waiting, self._chunks)
        finally:
            reader_process.close()
        self._false_starts = 0 if reader_process.ready else self._false_starts + 1
        if self._false_starts >= _MOST_FALSE_STARTS:
            raise ModelError(
                "The processes that read and decode shards die as soon as they start: something kills them, "
                "or the machine is out of memory. Run again. If memory is short, lower "
                "BORING_DECODE_WORKERS or BORING_READ_AHEAD_MB."
            )
        return lost, reader_process.row

    def _read_carefully(self, assignment: Assignment) -> None:
        """Reads a shard at which a process may have died, one image at a time."""
        setup = replace(self._setup, threads=1, careful=True)
        number, shard = assignment.number, assignment.shard
        deaths: Counter[int | None] = Counter()
        skip: dict[int, Failure] = {}
        while True:
            self._chunks.put(Chunk(number, shard, restart=True))
            lost, row = self._run(iter([replace(assignment, skip=skip)]), setup)
            if not lost:
                return
            deaths[row] += 1
            if deaths[row] < _MOST_DEATHS:
                continue
            if row is None:
                error = ShardError(
                    f"The process that reads {shard.uri} has died {1 + _MOST_DEATHS} times: the machine is "
                    "out of memory, or the shard is damaged. Try it again, or write it again."
                )
                self._chunks.put(Chunk(number, shard, restart=True))
                self._chunks.put(Chunk(number, shard, error=error))
                return
            log.warning("Row %d of %s kills its decoder; it is recorded as a decode_error.", row, shard.uri)
            skip[row] = Failure(Reason.DECODE_ERROR, "the decoding process died at this image")


class _Shared(Iterator[Assignment]):
    """An iterator that threads share."""

    def __init__(self, items: Iterable[Assignment]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> Assignment:
        with self._lock:
            return next(self._items)


class _ReaderProcess:
    """One process that reads and decodes shards."""

    def __init__(self, setup: Setup, arena_bytes: int, pin: Callable[[Arena], None]) -> None:
        self.ready = False  # whether it has started
        self.row: int | None = None  # that it was decoding when it died, if it is careful
        self._arena = Arena.create(arena_bytes)
        pin(self._arena)
        context = get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._poll = select.poll()  # `Connection.poll` makes a new one for each message
        self._poll.register(self._connection, select.POLLIN)
        self._process = context.Process(
            target=serve, args=(theirs, self._arena.name, setup), name="reader-process", daemon=True
        )
        self._process.start()
        theirs.close()

    def run(self, waiting: Iterator[Assignment], chunks: Channel[Chunk]) -> list[Assignment]:
        """Has it read shards and passes their chunks on; returns those that were unfinished when it died."""
        assigned: dict[int, Assignment] = {}
        newest = self._assign(waiting, assigned)
        try:
            while assigned:
                message = self._receive(chunks)
                if message is None:
                    self.ready = True
                    continue
                chunk = message.chunk
                chunks.put(self._unpack(message, assigned[chunk.number]), chunk.weight)
                if chunk.end or chunk.error:
                    del assigned[chunk.number]
                # One shard is opened ahead. The last shards are spread over all processes, because each takes
                # its next one only when it has begun to read the one before.
                if chunk.number == newest:
                    newest = self._assign(waiting, assigned)
        except (EOFError, ConnectionError):
            self._process.join()
            marked = int(self._arena.mark[0])
            self.row = marked - 1 if marked else None
            return list(assigned.values())
        return []

    def _assign(self, waiting: Iterator[Assignment], assigned: dict[int, Assignment]) -> int | None:
        """Sends the next shard, if there is one, and returns its number."""
        following = next(waiting, None)
        if following is None:
            return None
        assigned[following.number] = following
        with suppress(ConnectionError):  # if it has died, `_receive` sees that
            self._connection.send(following)
        return following.number

    def _receive(self, chunks: Channel[Chunk]) -> Message | None:
        while not self._poll.poll(_POLL_MILLISECONDS):
            if not chunks.is_open:
                raise Closed
        return self._connection.recv()

    def _unpack(self, message: Message, assignment: Assignment) -> Chunk:
        """Returns a chunk whose pixels are in shared memory, which is freed with them."""
        import torch

        chunk = message.chunk
        chunk.shard = assignment.shard
        if message.answers:
            block = message.pixels
            if isinstance(block, tuple):
                block = self._arena.take(*block)
            chunk.decoded = Future()
            chunk.decoded.set_result(Decoded(Pixels(torch.from_numpy(block), message.sizes), message.answers))
        return chunk

    def close(self) -> None:
        """Ends the process. The memory lives as long as its pixels."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._arena.unlink()


def _shared_memory_left() -> int:
    """Returns the bytes that may be used of the shared memory, which containers limit."""
    try:
        return shutil.disk_usage("/dev/shm").free * 9 // 10
    except OSError:
        return 2**62
