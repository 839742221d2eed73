"""Decoding in threads and in processes gives the same, and neither leaves anything behind."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import psutil
import pytest

from boring_assets.engine.decoding import decoders, rescue
from boring_assets.engine.decoding.decode import Limits, Preprocess, decode, decode_all
from boring_assets.engine.decoding.decoders import Decoders, ProcessDecoders, ThreadDecoders
from boring_assets.engine.samples import Failure, Reason
from boring_assets.tiny.pictures import all_combinations, draw
from tests.waiting import HANG_SECONDS, wait_for

NUMBERS = Preprocess(64, 64)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    import io

    encoded = []
    for number, combination in enumerate(all_combinations()[:20]):
        out = io.BytesIO()
        draw(combination, 96 + number % 3, number).save(out, "PNG" if number % 7 == 0 else "JPEG")
        encoded.append(out.getvalue())
    return [*encoded[:8], b"<html>", *encoded[8:], encoded[1][:200]]


@pytest.mark.parametrize("slots", [0, 2**24])
def test_processes_answer_as_threads_do(
    images: list[bytes], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[Decoders] = [
        ThreadDecoders(2, NUMBERS, Limits()),
        ProcessDecoders(2, len(images), NUMBERS, Limits(), slots),
    ]
    expected = [decode(image, NUMBERS, Limits()) for image in images]
    for kind in kinds:
        under_way = [kind.submit(images) for _ in range(12)]  # more than there are slots
        for future in under_way:
            pixels, answers = future.result()
            assert [answer and answer.reason for answer in answers] == [
                one.reason if isinstance(one, Failure) else None for one in expected
            ]
            good = [one.numpy() for one in expected if not isinstance(one, Failure)]
            assert np.array_equal(pixels.numpy(), np.stack(good))
        kind.close(cancel=False)
    assert [answer.reason for answer in answers if answer] == [Reason.DECODE_ERROR] * 2


def test_slots_are_used_again_and_the_memory_is_given_back(images: list[bytes]) -> None:
    mine = ProcessDecoders(2, len(images), NUMBERS, Limits(), 0)
    name = mine._memory.name
    for _ in range(50):
        assert len(mine.submit(images).result().pixels) == len(images) - 2
    assert len(mine._free) == 4
    mine.close(cancel=True)
    assert not (Path("/dev/shm") / name).exists()


def test_the_kind_follows_the_number() -> None:
    few = decoders.start_decoders(4, 16, NUMBERS, Limits(), 2**20)
    many = decoders.start_decoders(5, 16, NUMBERS, Limits(), 2**20)
    try:
        assert isinstance(few, ThreadDecoders)
        assert isinstance(many, ProcessDecoders)
    finally:
        few.close(cancel=True)
        many.close(cancel=True)


DEADLY = b"an image at which a decoder dies, as at a fault in native code"


def _die_at_the_deadly(images: Sequence[bytes], *rest: object) -> Iterator[object]:
    for image in images:
        if image == DEADLY:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield from decode_all([image], *rest)  # type: ignore[arg-type]


def _decode_or_die(images: Sequence[bytes], slot: int) -> object:
    """What a worker does, with a decoder that has a fatal fault; runs in the worker."""
    decoders.decode_all = _die_at_the_deadly  # type: ignore[assignment]
    return _real_decode_into(images, slot)


_real_decode_into = decoders._decode_into


@pytest.fixture
def fatal_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_decode_into", _decode_or_die)


@pytest.mark.parametrize("slots", [0, 2**24])
def test_an_image_that_kills_its_decoder_fails_alone(
    images: list[bytes], slots: int, fatal_fault: None
) -> None:
    mine = ProcessDecoders(2, len(images), NUMBERS, Limits(), slots)
    chunks = [images] * 12
    chunks[3] = [*images[:5], DEADLY, *images[6:]]
    chunks[9] = [DEADLY]
    under_way = [mine.submit(chunk) for chunk in chunks]
    for number, (chunk, future) in enumerate(zip(chunks, under_way, strict=True)):
        pixels, answers = future.result(HANG_SECONDS)
        expected = [None if image == DEADLY else decode(image, NUMBERS, Limits()) for image in chunk]
        good = [one.numpy() for one in expected if one is not None and not isinstance(one, Failure)]
        assert len(pixels) == len(good), number
        assert not good or np.array_equal(pixels.numpy(), np.stack(good)), number
        for image, answer, one in zip(chunk, answers, expected, strict=True):
            if image == DEADLY:
                assert answer == Failure(Reason.DECODE_ERROR, "the decoding process died at this image")
            else:
                assert (answer is None) == (not isinstance(one, Failure))
    assert len(mine.submit(images).result(HANG_SECONDS).pixels) == len(images) - 2, "and it works on"
    name = mine._memory.name
    mine.close(cancel=False)
    assert not (Path("/dev/shm") / name).exists()


def test_a_killed_process_loses_nothing(images: list[bytes]) -> None:
    mine = ProcessDecoders(2, len(images), NUMBERS, Limits(), 0)
    mine.submit(images).result()
    for _ in range(3):
        under_way = [mine.submit(images) for _ in range(20)]
        os.kill(next(iter(mine._pool._processes)), signal.SIGKILL)
        assert [len(future.result(HANG_SECONDS).pixels) for future in under_way] == [len(images) - 2] * 20
    gc.collect()
    del under_way
    mine.close(cancel=True)
    assert len(mine._free) == 4, "each slot came back, once"


def test_decoders_that_cannot_start_are_reported(
    images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "_MOST_DEATHS", 3)
    mine = ProcessDecoders(1, len(images), NUMBERS, Limits(), 0)
    mine._memory.unlink()  # no process can start without it
    with pytest.raises(BrokenProcessPool):
        mine.submit(images).result(HANG_SECONDS)
    mine._memory = SharedMemory(create=True, size=1)
    mine.close(cancel=True)


HOLD_DECODERS = """
import sys, time
from boring_assets.engine.decoding.decode import Limits, Preprocess
from boring_assets.engine.decoding.decoders import ProcessDecoders

if __name__ == "__main__":
    mine = ProcessDecoders(2, 1, Preprocess(64, 64), Limits(), 0)
    for future in [mine.submit([b"no image"]) for _ in range(8)]:
        future.result()
    print(mine._memory.name, *mine._pool._processes, flush=True)
    time.sleep(3600)
"""


def test_nothing_outlives_a_killed_run() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD_DECODERS], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        memory, *processes = run.stdout.readline().split()
        assert processes
        assert (Path("/dev/shm") / memory).exists()
        run.kill()

    def left() -> list[str]:
        alive = [pid for pid in processes if psutil.pid_exists(int(pid))]
        return alive + [memory] * (Path("/dev/shm") / memory).exists()

    wait_for(lambda: not left(), "processes and memory are gone", left)


def test_a_job_that_ends_before_its_processes_have_started_is_done(images: list[bytes]) -> None:
    mine = ProcessDecoders(6, len(images), NUMBERS, Limits(), 0)
    under_way = [mine.submit(images) for _ in range(6)]
    mine.close(cancel=False)
    assert [len(future.result(HANG_SECONDS).pixels) for future in under_way] == [len(images) - 2] * 6


LOSE_A_DECODER = """
import os, signal
from multiprocessing import forkserver
from pathlib import Path
from boring_assets.engine.decoding.decode import Limits, Preprocess
from boring_assets.engine.decoding.decoders import ProcessDecoders

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mine = ProcessDecoders(2, 64, Preprocess(64, 64), Limits(), 0)
    under_way = [mine.submit([bytes(2**16)] * 64) for _ in range(40)]
    server = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()
    ignored = int(server.partition("SigIgn:")[2].split()[0], 16)
    assert not ignored >> (signal.SIGTERM - 1) & 1, "a process could not be ended before it has begun"
    os.kill(next(iter(mine._pool._processes)), signal.SIGKILL)
    for future in under_way:
        future.result()
    mine.close(cancel=True)
"""


def test_a_run_that_ignores_being_terminated_loses_nothing_by_a_killed_process_either() -> None:
    subprocess.run([sys.executable, "-c", LOSE_A_DECODER], check=True, timeout=HANG_SECONDS)
