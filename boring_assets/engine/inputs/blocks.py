"""Remote and local files from start to end, in blocks that are requested before they are needed.

One budget of bytes covers all files that a process reads from object storage: the blocks that are under way,
and those that wait to be read. The shard that is read takes what it can use. Shards that are open before
their turn take the rest, at most half of the budget.
"""

import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import ShardError

# A request to object storage waits long for its first byte. On a disk larger blocks are not faster, and the
# allocator would keep some of them for each thread that has read one.
OBJECT_BLOCK = 8 * 2**20
_DISK_BLOCK = 2**20
_DISK_AHEAD = 3
_MOST_REQUESTS = 16


@runtime_checkable
class HasStart(Protocol):
    """A filesystem that says a file's size with its first bytes."""

    def cat_start(self, path: str, count: int) -> tuple[bytes, int | None]:
        """Returns up to `count` bytes of a file, and its size; None if it is unknown."""


@dataclass(frozen=True)
class Start:
    """The first bytes of a file.

    Attributes:
        data: The bytes.
        size: The file's size in bytes; None if it is unknown.
    """

    data: bytes
    size: int | None

    @property
    def is_all(self) -> bool:
        """Whether the file ends with them."""
        return len(self.data) == self.size


def read_start(fs: AbstractFileSystem, path: str, count: int) -> Start | None:
    """Reads a remote file's first bytes without asking for its size: a small file takes one request.

    Args:
        fs: The filesystem.
        path: The file's path on it.
        count: How many bytes.

    Returns:
        The bytes; None for a local file, whose size is known without a request, and for an empty one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if isinstance(fs, LocalFileSystem):
        return None
    try:
        if isinstance(fs, HasStart):
            return Start(*fs.cat_start(path, count))
        data: bytes = fs.cat_file(path, start=0, end=count)
    except FileNotFoundError:
        raise
    except Exception:
        if fs.size(path):  # S3 refuses the range where there is nothing
            raise
        return None
    return Start(data, len(data) if len(data) < count else None)


class Budget:
    """Bytes that several readers may have asked for before somebody reads them.

    Each reader may have one block even where nothing is left, so that none waits for another.

    Attributes:
        total: How many bytes.
    """

    def __init__(self, total: int) -> None:
        """Nothing is asked for yet."""
        self.total = total
        self._used = 0
        self._readers: list[BlockReader] = []
        self._lock = threading.Lock()

    def add(self, reader: "BlockReader") -> None:
        """Lets a reader ask for blocks, after those that are there."""
        with self._lock:
            self._readers.append(reader)
            self._share_out()

    def take(self, reader: "BlockReader") -> tuple[int, Future[bytes]] | None:
        """The reader's next block and its size; from now on it comes before the others."""
        with self._lock:
            if not reader.is_read:
                reader.is_read = True
                if reader in self._readers:  # a file that came whole with its first bytes is not
                    self._readers.remove(reader)
                    self._readers.insert(0, reader)
                    self._share_out()
            return reader.asked.pop(0) if reader.asked else None

    def give_back(self, size: int) -> None:
        """Shares out the bytes of a block that is read."""
        with self._lock:
            self._used -= size
            self._share_out()

    def remove(self, reader: "BlockReader") -> None:
        """Shares out what a reader has asked for and will not read."""
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)
                self._used -= sum(size for size, _ in reader.asked)
                reader.asked.clear()
                self._share_out()

    def _share_out(self) -> None:
        for reader in self._readers:
            most = self.total if reader.is_read else self.total // 2
            while (size := reader.next_size) and (not reader.asked or self._used + size <= most):
                reader.ask()
                self._used += size


OBJECT_STORAGE = Budget(_MOST_REQUESTS * OBJECT_BLOCK)


class BlockReader:
    """Reads a remote or local file from its start to its end, with requests in flight ahead of it.

    Attributes:
        size: The file's size in bytes.
        asked: Size and content of the blocks that are asked for, in order. The budget changes it.
        is_read: Whether reading has begun.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        block: int | None = None,
        start: Start | None = None,
        budget: Budget | None = None,
        first: int = 0,
    ) -> None:
        """Requests the first block.

        Args:
            fs: The filesystem.
            path: The file's path on it.
            block: Bytes in one request; by default what suits a disk or object storage.
            start: The bytes of the file that were read already.
            budget: How much is read ahead; by default a local file has a budget of its own.
            first: Where to begin in the file; not with `start`.
        """
        local = isinstance(fs, LocalFileSystem)
        self._fs, self._path = fs, path
        self._block = block or (_DISK_BLOCK if local else OBJECT_BLOCK)
        size = start.size if start else None
        self.size: int = fs.size(path) if size is None else size
        self._pool = ThreadPoolExecutor(_MOST_REQUESTS, thread_name_prefix="read-ahead")
        self._buffer = start.data if start else b""
        self._end = first + len(self._buffer)
        self._at = 0
        self.asked: list[tuple[int, Future[bytes]]] = []
        self.is_read = False
        self._budget = budget or (Budget(_DISK_AHEAD * self._block) if local else OBJECT_STORAGE)
        if self.next_size:
            self._budget.add(self)

    def close(self) -> None:
        """Ends the requests that are in flight."""
        self._budget.remove(self)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def next_size(self) -> int:
        """Size of the block that is asked for next; 0 at the end of the file."""
        return max(0, min(self._block, self.size - self._end))

    def ask(self) -> None:
        """Requests the next block; called by the budget."""
        size = self.next_size
        block = self._pool.submit(self._fs.cat_file, self._path, start=self._end, end=self._end + size)
        self.asked.append((size, block))
        self._end += size

    def read(self, count: int) -> bytes:
        """Returns the next `count` bytes, fewer only at the end of the file."""
        if self._at + count <= len(self._buffer):
            self._at += count
            return self._buffer[self._at - count : self._at]
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        self._buffer, self._at = b"", 0
        while have < count and self._next_block():
            parts.append(self._buffer)
            have += len(self._buffer)
        if have > count:
            keep = len(parts[-1]) - (have - count)
            parts[-1] = parts[-1][:keep]
            self._at = keep
        else:
            self._at = len(self._buffer)
        return b"".join(parts)

    def skip(self, count: int) -> int:
        """Skips bytes; returns how many there were."""
        left = count
        while left > 0:
            step = min(left, len(self._buffer) - self._at)
            self._at += step
            left -= step
            if left and not self._next_block():
                break
        return count - left

    def _next_block(self) -> bool:
        taken = self._budget.take(self)
        if taken is None:
            return False
        size, block = taken
        try:
            self._buffer, self._at = block.result(), 0
        finally:
            self._budget.give_back(size)
        if len(self._buffer) != size:  # it must not look like the end of the file
            raise ShardError(
                f"Reading {self._path} gave {len(self._buffer)} bytes where {size} were asked for: it was "
                "cut short, or it changed while it was read. Try it again."
            )
        return True


class ForwardFile(io.RawIOBase):
    """A remote file for pyarrow whose reads go forward, over blocks that are requested ahead.

    A read backwards is a request of its own.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, first: int) -> None:
        """Requests the first blocks.

        Args:
            fs: The filesystem.
            path: The file's path on it.
            first: Where the reads begin.
        """
        self._fs, self._path = fs, path
        self._reader, self._read_to = BlockReader(fs, path, first=first), first
        self._at = 0

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
        self._at = offset + (0, self._at, self._reader.size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:  # noqa: D102
        count = max(0, min(self._reader.size - self._at, size if size >= 0 else self._reader.size))
        if count == 0:
            return b""
        if self._at >= self._read_to:
            self._reader.skip(self._at - self._read_to)
            data = self._reader.read(count)
            self._read_to = self._at + len(data)
        else:
            data = self._fs.cat_file(self._path, start=self._at, end=self._at + count)
        self._at += len(data)
        return data

    def close(self) -> None:
        """Ends the requests that are in flight."""
        self._reader.close()
        super().close()
