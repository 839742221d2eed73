"""Decodes what a broken pool of processes had in hand, by one process that may die as often as it must."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from boring_assets.engine.samples import Failure, Reason

log = logging.getLogger(__name__)
Answers = list[Failure | None]
# So many deaths, with no image decoded in between, are not the images' doing.
_MOST_DEATHS = 40


class Rescuer:
    """First chunk by chunk, and where the process dies too, image by image."""

    def __init__(
        self,
        new_pool: Callable[[int], ProcessPoolExecutor],
        decode: Callable[[Sequence[bytes], int], tuple[np.ndarray | None, Answers]],
        answer: Callable[[np.ndarray, Answers], Any],
    ) -> None:
        """Starts nothing before it is needed.

        Args:
            new_pool: Starts a pool of so many processes.
            decode: What a process does with images and no slot (-1): their pixels, and why others failed.
            answer: Makes of that what `rescue` sets in the end.
        """
        self._new_pool, self._work, self._answer = new_pool, decode, answer
        self._pool: ProcessPoolExecutor | None = None
        self._thread = ThreadPoolExecutor(1, "rescue")
        self._deaths = 0

    def rescue(self, images: Sequence[bytes], done: Future, first: Callable[[], None]) -> None:
        """Begins to decode some images.

        Args:
            images: Encoded images.
            done: Is set in the end; to BrokenProcessPool where no process lives long enough for any image.
            first: Called before, in the rescuer's own thread.
        """

        def work() -> None:
            try:
                first()
                done.set_result(self._answer(*self._decode(images)))
            except BaseException as error:
                done.set_exception(error)

        try:
            waiting = self._thread.submit(work)
        except RuntimeError:  # closed: nobody wants it any more
            done.cancel()
        else:
            waiting.add_done_callback(lambda ended: ended.cancelled() and done.cancel())

    def close(self, *, cancel: bool) -> None:
        """Ends the process, once it is done or, with `cancel`, as soon as it can."""
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
                answers.append(Failure(Reason.DECODE_ERROR, "the decoder's process died at it"))
            else:
                pixels.append(alone[0])
                answers += alone[1]
        return np.concatenate([part for part in pixels if len(part)] or pixels[:1]), answers

    def _try(self, images: Sequence[bytes]) -> tuple[np.ndarray, Answers] | None:
        """The images' pixels, failures left out, and answers; None where the process died at them."""
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
