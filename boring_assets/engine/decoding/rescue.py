"""Decodes the chunks of a broken process pool in one separate process, to find the image that kills it."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from boring_assets.engine.samples import Failure, Reason

log = logging.getLogger(__name__)
Answers = list[Failure | None]
# If a process dies this often without decoding any image, the images are not the cause.
_MOST_DEATHS = 40


class Rescuer:
    """Decodes chunk by chunk and, if the process dies, image by image."""

    def __init__(
        self,
        new_pool: Callable[[int], ProcessPoolExecutor],
        decode: Callable[[Sequence[bytes], int], tuple[np.ndarray | None, Answers]],
        answer: Callable[[np.ndarray, Answers], Any],
    ) -> None:
        """The process starts with the first call of `rescue`.

        Args:
            new_pool: Starts a process pool of a given size.
            decode: Run in the process with images and slot -1; returns pixels and failures.
            answer: Converts these to the result of `rescue`.
        """
        self._new_pool, self._work, self._answer = new_pool, decode, answer
        self._pool: ProcessPoolExecutor | None = None
        self._thread = ThreadPoolExecutor(1, "rescue")
        self._deaths = 0

    def rescue(self, images: Sequence[bytes], done: Future, first: Callable[[], None]) -> None:
        """Starts to decode some images.

        Args:
            images: Encoded images.
            done: Gets the result, or BrokenProcessPool if no process lives long enough to decode any image.
            first: Called before that, in the rescuer's thread.
        """

        def work() -> None:
            try:
                first()
                done.set_result(self._answer(*self._decode(images)))
            except BaseException as error:
                done.set_exception(error)

        try:
            waiting = self._thread.submit(work)
        except RuntimeError:  # closed: the result is no longer needed
            done.cancel()
        else:
            waiting.add_done_callback(lambda ended: ended.cancelled() and done.cancel())

    def close(self, *, cancel: bool) -> None:
        """Stops the process when it is done or, with `cancel`, as soon as possible."""
        self._thread.shutdown(wait=True, cancel_futures=cancel)
        if self._pool:
            self._pool.shutdown(wait=True)

    def _decode(self, images: Sequence[bytes]) -> tuple[np.ndarray, Answers]:
        together = self._try(images)
        if together is not None:
            return together
        pixels: list[np.ndarray] = [np.empty((0, 1, 1, 3), np.uint8)]
        answers: Answers = []
        for image in images:
            alone = self._try([image])
            if alone is None:
                log.warning("An image killed its decoder three times; it is recorded as a decode_error.")
                answers.append(Failure(Reason.DECODE_ERROR, "the decoding process died at this image"))
            else:
                pixels.append(alone[0])
                answers += alone[1]
        return np.concatenate([part for part in pixels if len(part)] or pixels[:1]), answers

    def _try(self, images: Sequence[bytes]) -> tuple[np.ndarray, Answers] | None:
        """Returns pixels and failures, or None if the process died."""
        self._pool = self._pool or self._new_pool(1)
        try:
            pixels, answers = self._pool.submit(self._work, images, -1).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=True)
            self._pool = None
            self._deaths += 1
            if self._deaths >= _MOST_DEATHS:
                raise
            return None
        self._deaths = 0
        assert pixels is not None
        return pixels[: answers.count(None)], answers
