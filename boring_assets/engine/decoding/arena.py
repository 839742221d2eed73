"""Shared memory for pixels: one process allocates and fills blocks, another one reads and frees them."""

import threading
import weakref
from collections import deque
from multiprocessing.shared_memory import SharedMemory

import numpy as np

_UNIT = 64 * 2**10
# Memory whose views are gone. It is unmapped later: numpy still holds it while it says that a view is gone.
_unused: deque[SharedMemory] = deque()


class Arena:
    """Blocks of shared memory, in units of 64 KiB.

    A table at its start says which units are in use and how long each block is. Only one process allocates; a
    block may be freed by any thread of either process, by setting bytes of the table.

    Attributes:
        name: For `attach`.
        mark: int64 [1], for the process that allocates to say what it does.
        memory: uint8 [n], the blocks.
    """

    def __init__(self, shared: SharedMemory) -> None:
        """Uses shared memory that `create` has sized. See `create` and `attach`."""
        self._shared, self.name = shared, shared.name
        units = shared.size // (_UNIT + 5) - 2
        whole = np.ndarray(shared.size, np.uint8, shared.buf)
        self.mark = whole[:8].view(np.int64)
        self._lengths = whole[8 : 8 + 4 * units].view(np.uint32)
        self._used = whole[8 + 4 * units : 8 + 5 * units]
        start = -(-(8 + 5 * units) // _UNIT) * _UNIT
        self.memory = whole[start : start + units * _UNIT]
        self._lock = threading.Lock()
        weakref.finalize(whole, _unused.append, shared).atexit = False

    @classmethod
    def create(cls, size: int) -> "Arena":
        """Returns a new arena with room for about `size` bytes. Untouched memory is not allocated."""
        while _unused:
            _unused.popleft().close()
        units = size // _UNIT + 1
        return cls(SharedMemory(create=True, size=(units + 2) * (_UNIT + 5)))

    @classmethod
    def attach(cls, name: str) -> "Arena":
        """Returns the arena of another process."""
        return cls(SharedMemory(name))

    def unlink(self) -> None:
        """Removes the name. The memory lives until no process uses it."""
        self._shared.unlink()

    def allocate(self, count: int) -> np.ndarray | None:
        """Returns uint8 [count], the first free block that is long enough, or None."""
        units = max(1, -(-count // _UNIT))
        with self._lock:
            # A copy, since the other process frees blocks meanwhile.
            used = np.flatnonzero(self._used.copy())
            ends = np.append(used, len(self._used))
            starts = np.append(0, used + 1)
            fits = np.flatnonzero(ends - starts >= units)
            if not len(fits):
                return None
            first = int(starts[fits[0]])
            self._lengths[first] = units
            self._used[first : first + units] = 1
        return self.memory[first * _UNIT : first * _UNIT + count]

    def offset(self, block: np.ndarray) -> int:
        """Returns where a block begins in `memory`, or -1 if it is not in this arena."""
        offset = block.ctypes.data - self.memory.ctypes.data
        return offset if 0 <= offset < len(self.memory) else -1

    def take(self, offset: int, count: int) -> np.ndarray:
        """Returns a block, uint8 [count], that is freed when nothing refers to it any more."""
        # Over a memoryview, since numpy's slices of an array over another array would refer to that one only.
        block = np.frombuffer(self.memory[offset : offset + count].data, np.uint8)
        weakref.finalize(block, self.free, offset).atexit = False
        return block

    def free(self, offset: int) -> None:
        """Frees the block at an offset."""
        first = offset // _UNIT
        self._used[first : first + int(self._lengths[first])] = 0
