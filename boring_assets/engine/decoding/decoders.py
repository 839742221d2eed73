"""Decodes in parallel: in threads up to four workers, in processes above.

Decoding releases the GIL, but the calls around it do not: on 16 cores, 8 threads decode only 5 times as fast
as one. Processes scale. They return pixels in shared memory, without a copy.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from boring_assets.engine.decoding.decode import Limits, Preprocess, decode_all
from boring_assets.engine.decoding.rescue import Rescuer
from boring_assets.engine.samples import Failure

if TYPE_CHECKING:
    from torch import Tensor

# Up to this many workers, threads are as fast as processes and start at once.
MOST_THREADS = 4


class Decoded(NamedTuple):
    """A decoded chunk.

    Attributes:
        pixels: uint8 [n, height, width, 3], the decoded images in order, without failures.
        answers: For each image of the chunk None, or why it failed.
    """

    pixels: "Tensor"
    answers: list[Failure | None]


class Decoders(Protocol):
    """Decodes chunks of images in parallel."""

    def submit(self, images: "Sequence[bytes]") -> "Future[Decoded]":
        """Starts to decode some images.

        Args:
            images: Encoded images, at most `chunk` of them.

        Returns:
            A future with their pixels and failures.
        """
        ...

    def close(self, *, cancel: bool) -> None:
        """Stops the workers when they are done or, with `cancel`, as soon as possible."""
        ...


def start_decoders(
    workers: int, chunk: int, preprocess: Preprocess, limits: Limits, pixel_bytes: int
) -> Decoders:
    """Starts decoding threads, or processes for more than four workers.

    Args:
        workers: Number of threads or processes.
        chunk: Maximum images in one call of `submit`.
        preprocess: The model's preprocess configuration.
        limits: Limits for one image.
        pixel_bytes: Approximate size of the decoded pixels that may wait for the model.

    Returns:
        The decoders.
    """
    if workers <= MOST_THREADS:
        return ThreadDecoders(workers, preprocess, limits)
    return ProcessDecoders(workers, chunk, preprocess, limits, pixel_bytes)


class ThreadDecoders:
    """Decodes in threads of this process."""

    def __init__(self, workers: int, preprocess: Preprocess, limits: Limits) -> None:
        """Threads start with the first image."""
        self._preprocess, self._limits = preprocess, limits
        self._pool = ThreadPoolExecutor(workers, "decode", initializer=_one_thread)

    def submit(self, images: "Sequence[bytes]") -> "Future[Decoded]":
        """See `Decoders`."""
        return self._pool.submit(_decode_all, images, self._preprocess, self._limits)

    def close(self, *, cancel: bool) -> None:
        """See `Decoders`."""
        self._pool.shutdown(wait=cancel, cancel_futures=cancel)


class ProcessDecoders:
    """Decodes in processes, into slots of shared memory.

    If a process dies, the pool breaks, and which image killed it is unknown. The pool is started again. The
    chunks that were being decoded go to a separate process, chunk by chunk and then, if it dies too, image by
    image. An image at which that process dies as well is recorded as failed.
    """

    def __init__(
        self, workers: int, chunk: int, preprocess: Preprocess, limits: Limits, pixel_bytes: int
    ) -> None:
        """Creates the shared memory. Processes start with the first images."""
        self._shape = (chunk, preprocess.height, preprocess.width, 3)
        self._slot_bytes = int(np.prod(self._shape))
        slots = max(2 * workers, pixel_bytes // self._slot_bytes)
        self._memory = SharedMemory(create=True, size=slots * self._slot_bytes)
        # Last used, first reused: untouched memory is never allocated. A deque is safe to append to from any
        # thread, and a slot is freed wherever Python collects garbage.
        self._free = deque(range(slots))
        start_server()
        self._new_pool = partial(
            ProcessPoolExecutor,
            mp_context=get_context("forkserver"),
            initializer=_attach,
            initargs=(self._memory.name, self._shape, preprocess, limits),
        )
        self._workers = workers
        self._pool = self._new_pool(workers)
        self._rescuer = Rescuer(self._new_pool, _decode_into, _decoded)

    def submit(self, images: "Sequence[bytes]") -> "Future[Decoded]":
        """See `Decoders`."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = -1  # no slot is free: pixels return through the pipe, which is slower but cannot deadlock
        done: Future[Decoded] = Future()
        try:
            work = self._pool.submit(_decode_into, images, slot)
        except BrokenProcessPool:
            self._pool = self._new_pool(self._workers)
            work = self._pool.submit(_decode_into, images, slot)
        work.add_done_callback(partial(self._receive, self._pool, images, slot, done))
        return done

    def _receive(
        self, pool: ProcessPoolExecutor, images: "Sequence[bytes]", slot: int, done: "Future", work: "Future"
    ) -> None:
        """Returns a worker's answer as tensors over its slot, which is freed with the last of them."""
        error = work.exception() if not work.cancelled() else None
        if isinstance(error, BrokenProcessPool):
            self._rescuer.rescue(images, done, partial(self._free_after_pool, pool, slot))
            return
        if work.cancelled() or error:
            if slot >= 0:
                self._free.append(slot)
            done.set_exception(error) if error else done.cancel()
            return
        pixels, answers = work.result()
        if pixels is None:
            pixels = np.ndarray(self._shape, np.uint8, self._memory.buf, slot * self._slot_bytes)
            weakref.finalize(pixels, self._free.append, slot).atexit = False
        done.set_result(_decoded(pixels, answers))

    def _free_after_pool(self, pool: ProcessPoolExecutor, slot: int) -> None:
        """Frees a slot of a broken pool after its other processes, which may still write, have ended."""
        pool.shutdown(wait=True)
        if slot >= 0:
            self._free.append(slot)

    def close(self, *, cancel: bool) -> None:
        """See `Decoders`."""
        # A process that starts late still needs the memory, so all processes end before it is removed.
        self._pool.shutdown(wait=True, cancel_futures=cancel)
        self._rescuer.close(cancel=cancel)
        self._memory.unlink()


def _decoded(pixels: np.ndarray, answers: list[Failure | None]) -> Decoded:
    import torch

    return Decoded(torch.from_numpy(pixels)[: answers.count(None)], answers)


def start_server() -> None:
    """Starts the server process that decoding processes are forked from. Its imports then run early.

    A plain fork would copy CUDA's state and held locks. The server is a clean process with torch imported.
    """
    preload = ["boring_assets.engine.decoding.terminable", "torch", __name__]
    get_context("forkserver").set_forkserver_preload(preload)
    forkserver.ensure_running()


def _one_thread() -> None:
    """Limits torch to one thread, since each decoder uses one core."""
    import torch

    torch.set_num_threads(1)


def _decode_all(images: "Sequence[bytes]", preprocess: Preprocess, limits: Limits) -> Decoded:
    pixels = np.empty((len(images), preprocess.height, preprocess.width, 3), np.uint8)
    return _decoded(pixels, _fill(pixels, images, preprocess, limits))


def _fill(
    pixels: np.ndarray, images: "Sequence[bytes]", preprocess: Preprocess, limits: Limits
) -> list[Failure | None]:
    """Decodes images into the start of an array, in order, without failures."""
    answers: list[Failure | None] = []
    filled = 0
    for decoded in decode_all(images, preprocess, limits):
        if isinstance(decoded, Failure):
            answers.append(decoded)
        else:
            pixels[filled] = decoded.numpy()
            filled += 1
            answers.append(None)
    return answers


class _Worker:
    """State of a worker process: the shared memory and the configuration."""

    memory: SharedMemory
    shape: tuple[int, ...]
    preprocess: Preprocess
    limits: Limits


def _attach(name: str, shape: tuple[int, ...], preprocess: Preprocess, limits: Limits) -> None:
    _one_thread()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _Worker.memory, _Worker.shape = SharedMemory(name), shape
    _Worker.preprocess, _Worker.limits = preprocess, limits


def _die_with_parent() -> None:
    """Ends this process if the run is killed. Otherwise it would wait forever and keep the shared memory."""
    run = parent_process()
    assert run is not None
    run.join()
    os._exit(1)


def _decode_into(images: "Sequence[bytes]", slot: int) -> "tuple[np.ndarray | None, list[Failure | None]]":
    """Decodes images into a slot, or returns the pixels if the slot is -1."""
    if slot >= 0:
        offset = slot * int(np.prod(_Worker.shape))
        pixels = np.ndarray(_Worker.shape, np.uint8, _Worker.memory.buf, offset)
    else:
        pixels = np.empty((len(images), *_Worker.shape[1:]), np.uint8)
    return (None if slot >= 0 else pixels), _fill(pixels, images, _Worker.preprocess, _Worker.limits)
