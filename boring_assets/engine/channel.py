"""A queue between threads that is bounded by weight and can be closed from either side."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other side has closed the channel."""


class Channel(Generic[T]):
    """A first-in, first-out queue between writers and readers."""

    def __init__(self, limit: int) -> None:
        """Bounds the weight that it holds. A single heavier item still passes, alone."""
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._weight = 0
        self._changed = threading.Condition()
        self.is_open = True
        self._error: BaseException | None = None

    def put(self, item: T, weight: int = 1) -> None:
        """Adds an item as soon as there is room; raises Closed if the channel is closed."""
        with self._changed:
            while self.is_open and self._weight and self._weight + weight > self._limit:
                self._changed.wait()
            if not self.is_open:
                raise Closed
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self) -> T:
        """Takes the oldest item as soon as there is one.

        Raises:
            Closed: The channel was closed and is empty. If it was closed with an error, that error is raised.
        """
        with self._changed:
            while self.is_open and not self._items:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._items:
                raise Closed
            item, weight = self._items.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item

    def close(self, error: BaseException | None = None) -> None:
        """Closes both sides. Readers still get the items in it or, if there is an error, raise that."""
        with self._changed:
            self.is_open = False
            self._error = self._error or error
            self._changed.notify_all()


def run_between(work: Callable[[], None], *channels: Channel) -> None:
    """Runs a thread's work. An error closes the channels and so reaches their readers."""
    try:
        work()
    except Closed:
        return
    except BaseException as error:
        for channel in channels:
            channel.close(error)
