"""The process of a reader process: a reader with its decoding threads; see `reader_processes.py`."""

import os
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np

from boring_assets.engine.channel import Channel, run_between
from boring_assets.engine.decoding.arena import Arena
from boring_assets.engine.decoding.decoders import Decoders, Target, new_buffer
from boring_assets.engine.decoding.pixels import Size
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.read_ahead import OBJECT_STORAGE
from boring_assets.engine.reader import Chunk, Opened, Reader
from boring_assets.engine.results import Options
from boring_assets.engine.samples import Failure

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Setup:
    """What a reader process needs to know.

    Attributes:
        target: What images are decoded to; their memory is the process's own.
        batch_size: The share of a batch that this process reads.
        threads: Decoding threads.
        careful: Whether it decodes one image at a time, and marks which.
        environ: The environment of the run. The server that processes are forked from may be older than it.
    """

    options: Options
    fetcher: Fetcher
    target: Target
    batch_size: int
    threads: int = 1
    careful: bool = False
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded chunk on its way to the process of the model.

    Attributes:
        chunk: The chunk, without its images and pixels.
        answers: For each image None, or why it failed.
        sizes: Height and width of each decoded image.
        pixels: Offset and length of the pixels in the arena or, if that was full, the pixels.
    """

    chunk: Chunk
    answers: list[Failure | None] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    pixels: tuple[int, int] | np.ndarray = (0, 0)


def serve(connection: Connection, arena_name: str, setup: Setup) -> None:
    """Reads the shards that the other side sends and sends their chunks, until it is killed.

    First, None is sent to say that this process is ready.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends its reader processes
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(setup.environ)
    arena = Arena.attach(arena_name)
    options = replace(setup.options, decode_workers=setup.threads)
    target = replace(setup.target, new_buffer=partial(_new_buffer, arena))
    chunks: Channel[Chunk] = Channel(options.read_ahead_bytes)
    OBJECT_STORAGE.total = options.read_ahead_bytes // 2  # all processes together, a quarter of the setting
    careful = Decoders(1, target, options.limits, partial(_mark, arena)) if setup.careful else None
    reader = Reader(options, setup.fetcher, target, setup.batch_size, chunks, careful)
    opened: queue.SimpleQueue[Opened] = queue.SimpleQueue()
    connection.send(None)  # before a shard can end this process
    threading.Thread(target=_receive, args=(connection, reader, opened), daemon=True).start()
    read = partial(reader.read, iter(opened.get, None))
    threading.Thread(target=run_between, args=(read, chunks), daemon=True).start()
    while True:
        connection.send(_message(chunks.get(), arena))


def _receive(connection: Connection, reader: Reader, opened: "queue.SimpleQueue[Opened]") -> None:
    """Opens shards as they come. If the other side is gone, this process ends at once."""
    try:
        while True:
            opened.put(reader.open(connection.recv()))
    except (EOFError, OSError):
        os._exit(1)


def _new_buffer(arena: Arena, count: int) -> "Tensor":
    """Returns memory in the arena, or ordinary memory if it is full: slower, but it cannot block."""
    import torch

    block = arena.allocate(count)
    return new_buffer(count) if block is None else torch.from_numpy(block)


def _mark(arena: Arena, rows: Sequence[int]) -> None:
    """Marks the row that is decoded next, or that none is."""
    arena.mark[0] = rows[0] + 1 if rows else 0


def _message(chunk: Chunk, arena: Arena) -> Message:
    decoded = chunk.decoded.result() if chunk.decoded else None
    # The other side knows the shard; its filesystem would be sent with each chunk.
    chunk = replace(chunk, shard=None, decoded=None)  # type: ignore[arg-type]
    if decoded is None:
        return Message(chunk)
    pixels = decoded.pixels.data.numpy()
    offset = arena.offset(pixels)
    place = pixels if offset < 0 else (offset, len(pixels))
    return Message(chunk, decoded.answers, decoded.pixels.sizes, place)
