"""Embeds shards: reading, decoding, the model and writing run at the same time, in threads of their own.

The stages, in order, are those of docs/architecture.md: reader, decoders, encoder, finishers, and the caller.
With more than four decoders, several processes each have a reader and decoders (`reader_processes.py`).

Each row gets exactly one answer, an embedding or a failure. A shard is finished when its last row has one.
Shards share batches, so many small shards cost as much as one large shard.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from typing_extensions import TypeVar

from boring_assets.engine.batcher import Batcher
from boring_assets.engine.channel import Channel, Closed, run_between
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.read_ahead import OBJECT_STORAGE
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.reader import Assignment, Chunk, Reader
from boring_assets.engine.reader_processes import THREADS, ReaderProcesses
from boring_assets.engine.results import EmbeddedShard, FailedShard, Options, Progress
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError

__all__ = ["EmbeddedShard", "FailedShard", "Options", "Progress", "embed_shards"]

_FINISHED_BYTES = 256 * 2**20
# Writing a shard to object storage is mostly waiting.
_FINISHERS = 4
T = TypeVar("T", default=EmbeddedShard)


def embed_shards(
    shards: Iterable[Shard],
    encoder: Encoder,
    options: Options | None = None,
    fetcher: Fetcher | None = None,
    progress: Progress | None = None,
    check: Callable[[Shard], None] | None = None,
    then: Callable[[EmbeddedShard], T] | None = None,
) -> Iterator[T | FailedShard]:
    """Embeds shards, and yields each as soon as it is finished.

    Args:
        shards: The shards, in order.
        encoder: The model on its device.
        options: How much of the machine to use.
        fetcher: Fetches images by URL. By default only below the input's own root.
        progress: Counts the samples.
        check: Called in another thread for each shard after it was read. Raises ShardError if the shard has
            changed.
        then: Called for each finished shard, in several threads. Its result is yielded in place of the shard.

    Yields:
        Each shard once, nearly in order: its embeddings, or why it could not be read. With `max_rows`,
        shards past the limit are left out. If the caller stops early, calls of `then` that have started
        are completed.

    Raises:
        ModelError: The device has failed.
        Exception: What `then` raised, or what `check` raised other than ShardError.
    """
    options = options or Options()
    fetcher = fetcher or Fetcher(max_bytes=options.limits.bytes)
    progress = progress or Progress()
    assignments = (Assignment(number, shard) for number, shard in enumerate(shards))
    chunks: Channel[Chunk]
    # With `max_rows`, how many rows of a shard are taken depends on the shard before.
    if options.decode_workers > THREADS and options.max_rows is None:
        chunks = Channel(options.read_ahead_bytes // 2)
        read = partial(ReaderProcesses(options, fetcher, encoder, chunks).read, assignments)
    else:
        chunks = Channel(options.read_ahead_bytes)
        OBJECT_STORAGE.total = options.read_ahead_bytes // 4
        reader = Reader(options, fetcher, encoder.target(), encoder.batch_size, chunks)
        read = partial(reader.read, reader.open_ahead(assignments))
    finished: Channel[EmbeddedShard | FailedShard] = Channel(_FINISHED_BYTES)
    answers: Channel[Future[Any]] = Channel(_FINISHERS)
    batcher = Batcher(encoder, options, chunks, finished, progress, check)
    work = {
        "reader": partial(run_between, read, chunks, finished),
        "encoder": partial(run_between, batcher.run, chunks, finished),
        "finisher": partial(_finish, finished, answers, then),
    }
    threads = [threading.Thread(target=body, name=name, daemon=True) for name, body in work.items()]
    for thread in threads:
        thread.start()
    try:
        while True:
            yield answers.get().result()
    except Closed:
        return
    finally:
        for channel in (chunks, finished, answers):
            channel.close()
        for thread in threads:
            thread.join()


def _finish(
    finished: Channel[EmbeddedShard | FailedShard],
    answers: Channel[Future[Any]],
    then: Callable[[EmbeddedShard], Any] | None,
) -> None:
    """Calls `then` with each finished shard, several at a time."""

    def answer(result: EmbeddedShard | FailedShard) -> Any:
        if not answers.is_open:  # the caller has stopped
            return None
        if isinstance(result, FailedShard):
            return result
        try:
            if result.checked:
                result.checked.result()
        except ShardError as error:  # its source has changed
            return FailedShard(result.shard, error)
        return then(result) if then else result

    with ThreadPoolExecutor(_FINISHERS, "finish") as pool, suppress(Closed):
        try:
            while True:
                answers.put(pool.submit(answer, finished.get()))
        except Closed:
            pass
        # Of the reader or the encoder: it is raised after the shards that were finished before it.
        except BaseException as error:
            last: Future[Any] = Future()
            last.set_exception(error)
            answers.put(last)
    answers.close()
