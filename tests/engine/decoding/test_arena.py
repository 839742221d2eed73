"""Blocks of shared memory: none overlap, each is freed with what refers to it, and full is said."""

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from boring_assets.engine.decoding.arena import Arena

UNIT = 64 * 2**10


@pytest.fixture
def arenas() -> tuple[Arena, Arena]:
    """The same memory twice, as in two processes."""
    mine = Arena.create(10 * UNIT)
    theirs = Arena.attach(mine.name)
    mine.unlink()
    return mine, theirs


def test_blocks_do_not_overlap_and_the_other_side_reads_them(arenas: tuple[Arena, Arena]) -> None:
    mine, theirs = arenas
    offsets = []
    for number, count in enumerate((1, UNIT, UNIT + 1, 3 * UNIT)):
        block = theirs.allocate(count)
        assert block is not None
        block[:] = number + 1
        offsets.append((theirs.offset(block), count))
    for number, (offset, count) in enumerate(offsets):
        taken = mine.take(offset, count)
        assert len(taken) == count
        assert set(taken.tolist()) == {number + 1}
    assert theirs.offset(np.zeros(5, np.uint8)) == -1


def test_a_full_arena_has_room_again_once_a_block_is_dropped(arenas: tuple[Arena, Arena]) -> None:
    mine, theirs = arenas
    blocks = []
    while (block := theirs.allocate(2 * UNIT)) is not None:
        blocks.append(theirs.offset(block))
    assert 5 <= len(blocks) <= 6
    held = mine.take(blocks[2], 100)
    part = held[10:20]
    del held
    assert theirs.allocate(2 * UNIT) is None, "a part of it is still in use"
    del part
    again = theirs.allocate(2 * UNIT)
    assert again is not None
    assert theirs.offset(again) == blocks[2], "the first room is taken"
    assert theirs.allocate(1) is None or len(blocks) == 5


def _free_blocks(name: str, offsets: Connection) -> None:
    arena = Arena.attach(name)
    while (offset := offsets.recv()) is not None:
        arena.free(offset)


def test_blocks_do_not_overlap_while_another_process_frees_some() -> None:
    """A large table, so that it changes while it is searched for free room."""
    arena = Arena.create(20_000 * UNIT)
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    other = get_context("spawn").Process(target=_free_blocks, args=(arena.name, receiver))
    other.start()
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            offsets = []
            while (block := arena.allocate(UNIT)) is not None and len(offsets) < 500:
                offsets.append(arena.offset(block))
            assert len(offsets) == len(set(offsets))
            for offset in offsets:
                sender.send(offset)
        sender.send(None)
        other.join()
    finally:
        other.kill()
        arena.unlink()
    assert other.exitcode == 0


def test_nothing_is_left_when_it_is_dropped() -> None:
    mine = Arena.create(UNIT)
    name = mine.name
    mine.unlink()
    del mine
    Arena.create(UNIT).unlink()  # unmaps what is unused
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
