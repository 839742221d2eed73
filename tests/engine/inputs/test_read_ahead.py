"""Reading ahead over several files within one budget of bytes."""

import random
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.blocks import Start, read_start
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.read_ahead import OBJECT_BLOCK, OBJECT_STORAGE, Budget, RemoteReader
from boring_assets.engine.inputs.sources import open_shard
from tests.engine.opening import shard_at
from tests.waiting import wait_for

BLOCK = 1000


class Slow(MemoryFileSystem):
    """Answers ranges when it is told to, and counts them."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.go, self.lock = threading.Event(), threading.Lock()
        self.asked: list[str] = []

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        with self.lock:
            self.asked.append(path)
        assert self.go.wait(60)
        return bytes(super().cat_file(path, *args, **kwargs))

    def count(self, path: str) -> int:
        with self.lock:
            return self.asked.count(path)


@pytest.fixture
def fs() -> Slow:
    fs = Slow()
    for name in "abcde":
        fs.pipe_file(f"/{name}", name.encode() * 20 * BLOCK)
    return fs


def test_files_share_a_budget_and_the_one_that_is_read_comes_first(fs: Slow) -> None:
    budget = Budget(8 * BLOCK)
    a, b, c, d, e = (RemoteReader(fs, f"/{name}", block=BLOCK, budget=budget) for name in "abcde")
    # Nobody reads yet: half of the budget is asked for, and each file's first block in any case.
    wait_for(lambda: len(fs.asked) == 8, "the first requests")
    assert [fs.count(f"/{name}") for name in "abcde"] == [4, 1, 1, 1, 1]
    fs.go.set()
    # Not the first one, and still it takes what is left from now on.
    assert d.read(BLOCK) == b"d" * BLOCK
    assert d.read(19 * BLOCK + 1) == b"d" * 19 * BLOCK
    assert fs.count("/d") == 20
    most = 0
    for reader, name in ((a, "a"), (b, "b")):
        parts = []
        while part := reader.read(300):
            parts.append(part)
            most = max(most, sum(len(one.asked) for one in (a, b, c, d, e)))
        assert b"".join(parts) == name.encode() * 20 * BLOCK
    assert most <= 8
    for reader in (a, b, c, d):
        reader.close()
    assert e.read(1) == b"e"
    wait_for(lambda: fs.count("/e") == 9, "all of the budget is for the last file")
    e.close()
    e.close()
    assert budget._used == 0


def test_the_first_bytes_are_not_read_again(fs: Slow) -> None:
    fs.go.set()
    whole, part = read_start(fs, "/a", 10**6), read_start(fs, "/b", BLOCK)
    assert whole == Start(b"a" * 20 * BLOCK, 20 * BLOCK)
    assert part == Start(b"b" * BLOCK, None)
    for name, start, requests in (("a", whole, 1), ("b", part, 20)):
        reader = RemoteReader(fs, f"/{name}", block=BLOCK, start=start)
        assert reader.read(10**6) == name.encode() * 20 * BLOCK
        reader.close()
        assert fs.count(f"/{name}") == requests


def test_a_failed_block_costs_no_budget(fs: Slow) -> None:
    budget = Budget(2 * BLOCK)
    reader = RemoteReader(fs, "/a", block=BLOCK, budget=budget)
    fs.rm("/a")
    fs.go.set()
    with pytest.raises(FileNotFoundError):
        reader.read(1)
    reader.close()
    assert budget._used == 0


@pytest.mark.parametrize("kind", ["bytes", "struct", "struct in large row groups"])
def test_images_in_a_large_parquet_are_read_ahead(fs: Slow, kind: str) -> None:
    fs.go.set()
    images = [random.Random(row).randbytes(100_000) for row in range(300)]
    column = images if kind == "bytes" else [{"bytes": data, "path": f"{data[:3].hex()}"} for data in images]
    table = pa.table({"key": [f"{row:05}" for row in range(300)], "image": column})
    with fs.open("/set/p.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=300 if "large" in kind else 20)
    opened = open_shard(shard_at("/set/p.parquet", fs=fs), Limits(), Fetcher())
    before = fs.count("/set/p.parquet")
    assert [image for _, image in sorted(opened.images())] == images
    blocks = -(-fs.size("/set/p.parquet") // OBJECT_BLOCK)
    assert fs.count("/set/p.parquet") - before == (0 if "large" in kind else blocks)
    assert opened.read(7) == images[7]
    opened.close()
    assert not OBJECT_STORAGE._readers
