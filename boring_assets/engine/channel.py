"""A queue between threads that is bounded by weight and can be closed from either side."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other side has closed the channel."""


class Channel(Generic[T]):
    """A first-in, first-out queue between writers and readers."""

    def __init__(self, limit: int) -> None:
        """Creates an empty channel.

        Args:
            limit: Maximum weight that it holds. A single heavier item still passes, alone.
        """
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._open = True
        self._error: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether the channel is open."""
        return self._open

    def put(self, item: T, weight: int = 1) -> None:
        """Adds an item as soon as there is room.

        Raises:
            Closed: The channel was closed.
        """
        with self._changed:
            while self._open and self._weight and self._weight + weight > self._limit:
                self._changed.wait()
            if not self._open:
                raise Closed
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self) -> T:
        """Takes the oldest item as soon as there is one.

        Raises:
            Closed: The channel was closed and is empty. If it was closed with an error, that error is raised.
        """
        return self.get_weighed()[0]

    def get_weighed(self) -> tuple[T, int]:
        """Takes the oldest item like `get`, and returns it with its weight."""
        with self._changed:
            while self._open and not self._items:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if not self._items:
                raise Closed
            item, weight = self._items.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item, weight

    def close(self, error: BaseException | None = None) -> None:
        """Closes both sides. Readers still get the items in it, unless there is an error.

        Args:
            error: What readers raise instead of getting items.
        """
        with self._changed:
            self._open = False
            self._error = self._error or error
            self._changed.notify_all()
