"""Files of object storage from start to end, in blocks that are requested before they are needed.

One budget of bytes covers all files that a process reads from object storage: the blocks that are under way,
and those that wait to be read. The shard that is read takes what it can use. Shards that are open before
their turn take the rest, at most half of the budget.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from boring_assets.engine.inputs.blocks import BlockReader, LocalReader, Start

Item = TypeVar("Item")
Answer = TypeVar("Answer")
# A request waits long for its first byte.
OBJECT_BLOCK = 8 * 2**20
_MOST_REQUESTS = 16


class Budget:
    """Bytes that several readers may have asked for before somebody reads them.

    Each reader may have one block even where nothing is left, so that none waits for another.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._readers: list[RemoteReader] = []
        self._lock = threading.Lock()

    def add(self, reader: "RemoteReader") -> None:
        """Lets a reader ask for blocks, after those that are there."""
        with self._lock:
            self._readers.append(reader)
            self._share_out()

    def take(self, reader: "RemoteReader") -> tuple[int, Future[bytes]] | None:
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

    def remove(self, reader: "RemoteReader") -> None:
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


class RemoteReader(BlockReader):
    """Reads a remote file from its start to its end, with requests in flight ahead of it.

    Attributes:
        asked: Size and content of the blocks that are asked for, in order. The budget changes it.
        is_read: Whether reading has begun.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        block: int = OBJECT_BLOCK,
        start: Start | None = None,
        budget: Budget = OBJECT_STORAGE,
        first: int = 0,
    ) -> None:
        """Requests the first block after `start`, which was read already and begins at `first`."""
        super().__init__(path, start.data if start else b"")
        self._fs, self._block, self._budget = fs, block, budget
        size = start.size if start else None
        self._size = fs.size(path) if size is None else size
        self._pool = ThreadPoolExecutor(_MOST_REQUESTS, thread_name_prefix="read-ahead")
        self._end = first + len(self._buffer)
        self.asked: list[tuple[int, Future[bytes]]] = []
        self.is_read = False
        if self.next_size:
            self._budget.add(self)

    def close(self) -> None:
        """Ends the requests that are in flight."""
        self._budget.remove(self)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def next_size(self) -> int:
        """Size of the block that is asked for next; 0 at the end of the file."""
        return max(0, min(self._block, self._size - self._end))

    def ask(self) -> None:
        """Requests the next block; called by the budget."""
        size = self.next_size
        block = self._pool.submit(self._fs.cat_file, self._path, start=self._end, end=self._end + size)
        self.asked.append((size, block))
        self._end += size

    def _next_block(self) -> bytes:
        taken = self._budget.take(self)
        if taken is None:
            return b""
        size, block = taken
        try:
            return self._check(block.result(), size)
        finally:
            self._budget.give_back(size)


def open_blocks(fs: AbstractFileSystem, path: str, start: Start | None = None) -> BlockReader:
    """Opens a local or remote file to read it from start to end; raises OSError if it cannot be opened."""
    return LocalReader(path) if isinstance(fs, LocalFileSystem) else RemoteReader(fs, path, start=start)


def in_parallel(items: Iterable[Item], work: Callable[[Item], Answer], threads: int) -> Iterator[Answer]:
    """Yields the answers for some items in order; at most twice `threads` of them are computed ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    pending: deque[Future[Answer]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class RemoteFile(AbstractBufferedFile):
    """A remote file for pyarrow; each read is one request, so several columns are best read in parallel."""

    def __init__(self, fs: AbstractFileSystem, path: str, size: int) -> None:
        super().__init__(fs, path, size=size, cache_type="none")

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start=start, end=min(end, self.size)))


class ForwardFile(RemoteFile):
    """A remote file for pyarrow whose reads go forward, over blocks that are requested ahead.

    A read backwards is a request of its own.
    """

    _reader: RemoteReader | None = None
    _read_to = 0

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self._reader is None:
            self._reader = RemoteReader(self.fs, self.path, start=Start(b"", self.size), first=start)
            self._read_to = start
        if start < self._read_to:
            return super()._fetch_range(start, end)
        self._reader.skip(start - self._read_to)
        data = self._reader.read(end - start)
        self._read_to = start + len(data)
        return data

    def close(self) -> None:
        """Ends the requests that are in flight."""
        if self._reader is not None:
            self._reader.close()
        super().close()
