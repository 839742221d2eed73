"""Shards in, embedded shards out: reading, decoding and the model at once, each in threads of its own.

    reader (1 thread)      opens shards ahead of time and streams their images
      │ chunks of images
    decoders (N threads)   bytes to uint8 pixels, or a reason
      │ in order, bounded by bytes
    encoder (1 thread)     fills batches across shard boundaries, gives each shard its rows back
      │ finished shards, bounded by bytes
    finishers (4 threads)  what the caller wants done with each: writing and committing it
      │ in order
    the caller

Each row is answered exactly once, with an embedding or a failure, and a shard is finished when its last
row is. Shards share batches, so many small ones cost what one large one costs.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, overload

from boring_assets.engine.batcher import Batcher
from boring_assets.engine.channel import Channel, Closed
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.reader import Chunk, Reader
from boring_assets.engine.results import EmbeddedShard, FailedShard, Options, Progress
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError

__all__ = ["EmbeddedShard", "FailedShard", "Options", "Progress", "embed_shards"]

_FINISHED_BYTES = 256 * 2**20
# Writing a shard to object storage is mostly waiting.
_FINISHERS = 4
T = TypeVar("T")


@overload
def embed_shards(
    shards: Iterable[Shard],
    encoder: Encoder,
    options: Options | None = None,
    fetcher: Fetcher | None = None,
    progress: Progress | None = None,
    check: Callable[[Shard], None] | None = None,
) -> Iterator[EmbeddedShard | FailedShard]: ...


@overload
def embed_shards(
    shards: Iterable[Shard],
    encoder: Encoder,
    options: Options | None = None,
    fetcher: Fetcher | None = None,
    progress: Progress | None = None,
    check: Callable[[Shard], None] | None = None,
    *,
    then: Callable[[EmbeddedShard], T],
) -> Iterator[T | FailedShard]: ...


def embed_shards(
    shards: Iterable[Shard],
    encoder: Encoder,
    options: Options | None = None,
    fetcher: Fetcher | None = None,
    progress: Progress | None = None,
    check: Callable[[Shard], None] | None = None,
    then: Callable[[EmbeddedShard], Any] | None = None,
) -> Iterator[Any]:
    """Embeds shards; each is given back as soon as it is finished.

    Args:
        shards: Which ones, in order.
        encoder: The model on its device.
        options: How much of the machine to take.
        fetcher: Fetches images behind URLs; by default only those below the dataset's own root.
        progress: Counted up as batches are answered.
        check: Called for each shard that was read to its end, in another thread; raises ShardError where it
            is no longer what it was. Its answer is waited for off the model's path.
        then: Called for each finished shard, for several at once in threads of their own; what it returns is
            given back in the shard's place.

    Yields:
        Each shard once, nearly in order: its embeddings, or why it could not be read. With `max_rows`,
        shards past the limit are left out. When the caller leaves, calls of `then` that have begun are
        waited for.

    Raises:
        ModelError: The device cannot go on.
        Exception: What `then` raised, or `check`, if that was no ShardError.
    """
    options = options or Options()
    fetcher = fetcher or Fetcher(max_bytes=options.limits.bytes)
    pixels: Channel[Chunk] = Channel(options.read_ahead_bytes)
    finished: Channel[EmbeddedShard | FailedShard] = Channel(_FINISHED_BYTES)
    answers: Channel[Future[Any]] = Channel(_FINISHERS)
    reader = Reader(options, fetcher, encoder, pixels, check)
    batcher = Batcher(encoder, pixels, finished, progress or Progress())
    work = {
        "reader": partial(_run, partial(reader.read, shards), pixels, finished),
        "encoder": partial(_run, batcher.run, pixels, finished),
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
        for channel in (pixels, finished, answers):
            channel.close()
        for thread in threads:
            thread.join()


def _finish(
    finished: Channel[EmbeddedShard | FailedShard],
    answers: Channel[Future[Any]],
    then: Callable[[EmbeddedShard], Any] | None,
) -> None:
    """Does with each finished shard what the caller wants done, with some of them at once."""

    def answer(result: EmbeddedShard | FailedShard) -> Any:
        if not answers.is_open:  # the caller has left
            return None
        result = _confirmed(result)
        return then(result) if then and isinstance(result, EmbeddedShard) else result

    with ThreadPoolExecutor(_FINISHERS, "finish") as pool, suppress(Closed):
        try:
            while True:
                answers.put(pool.submit(answer, finished.get()))
        except Closed:
            pass
        except BaseException as error:  # of the reader or the encoder: told after what was finished before it
            last: Future[Any] = Future()
            last.set_exception(error)
            answers.put(last)
    answers.close()


def _confirmed(result: EmbeddedShard | FailedShard) -> EmbeddedShard | FailedShard:
    """A shard whose source was found unchanged after it was read; otherwise it has failed."""
    if isinstance(result, FailedShard) or result.checked is None:
        return result
    try:
        result.checked.result()
    except ShardError as error:
        return FailedShard(result.shard, error)
    return result


def _run(work: Callable[[], None], *channels: Channel) -> None:
    """A thread's body: an error of its own reaches the caller; a closed channel just ends it."""
    try:
        work()
    except Closed:
        return
    except BaseException as error:
        for channel in channels:
            channel.close(error)
