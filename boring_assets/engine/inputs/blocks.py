"""Files from start to end, in blocks; `read_ahead.py` has those of object storage."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import ShardError

# On a disk larger blocks are not faster.
_DISK_BLOCK = 2**20
# The kernel reads so many bytes ahead, also where the disk is a network's.
_DISK_AHEAD = 4 * _DISK_BLOCK


@dataclass(frozen=True)
class Start:
    """The first bytes of a file, and the file's size; None if it is unknown."""

    data: bytes
    size: int | None


def read_start(fs: AbstractFileSystem, path: str, count: int) -> Start | None:
    """Reads a remote file's first bytes without asking for its size: a small file takes one request.

    Returns:
        Up to `count` bytes; None for a local file, whose size costs no request, and for an empty one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if isinstance(fs, LocalFileSystem):
        return None
    try:
        if hasattr(fs, "cat_start"):  # that of S3
            return Start(*fs.cat_start(path, count))
        data: bytes = fs.cat_file(path, start=0, end=count)
    except FileNotFoundError:
        raise
    except Exception:
        if fs.size(path):  # S3 refuses the range where there is nothing
            raise
        return None
    return Start(data, len(data) if len(data) < count else None)


class BlockReader(ABC):
    """Reads a file from its start to its end."""

    closed = False  # for pyarrow, which takes it for a file

    def __init__(self, path: str, start: bytes = b"") -> None:
        """Reads nothing yet; `start` was read already."""
        self._path = path
        self._buffer, self._at = start, 0

    @abstractmethod
    def close(self) -> None:
        """Ends reading."""

    @abstractmethod
    def _next_block(self) -> bytes:
        """Returns the bytes that follow; none at the end of the file."""

    def read(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer only at the end of the file."""
        if self._at + count <= len(self._buffer):
            self._at += count
            return self._buffer[self._at - count : self._at]
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        self._buffer, self._at = b"", 0
        while have < count and (block := self._next_block()):
            parts.append(block)
            have += len(block)
        if have > count:
            self._buffer, self._at = parts[-1], len(parts[-1]) - (have - count)
            parts[-1] = parts[-1][: self._at]
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Skips bytes; returns how many there were."""
        left = count
        while left > 0:
            step = min(left, len(self._buffer) - self._at)
            self._at += step
            left -= step
            if left:
                self._buffer, self._at = self._next_block(), 0
                if not self._buffer:
                    break
        return count - left

    def _check(self, block: bytes, size: int) -> bytes:
        """Returns a block; one that was cut short must not look like the end of the file."""
        if len(block) != size:
            raise ShardError(
                f"Reading {self._path} gave {len(block)} bytes where {size} were asked for: it was "
                "cut short, or it changed while it was read. Try it again."
            )
        return block


class LocalReader(BlockReader):
    """Reads a local file in the calling thread, while the kernel reads ahead."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        # Opening a pipe without a writer would block.
        self._file: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._size, self._end = os.fstat(self._file).st_size, 0

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _next_block(self) -> bytes:
        size = min(_DISK_BLOCK, self._size - self._end)
        if self._file is None or size <= 0:
            return b""
        if hasattr(os, "posix_fadvise"):  # macOS has none, and reads ahead by itself
            os.posix_fadvise(self._file, self._end + size, _DISK_AHEAD, os.POSIX_FADV_WILLNEED)
        block = self._check(os.pread(self._file, size, self._end), size)
        self._end += size
        return block
