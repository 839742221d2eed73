"""Decoding in threads and in processes gives the same, and neither leaves anything behind."""

from pathlib import Path

import numpy as np
import pytest

from boring_assets.engine import decoders
from boring_assets.engine.decode import Limits, Preprocess, decode
from boring_assets.engine.decoders import Decoders, ProcessDecoders, ThreadDecoders
from boring_assets.engine.samples import Failure, Reason
from boring_assets.tiny.pictures import all_combinations, draw

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
    assert mine._free.qsize() == 4
    mine.close(cancel=True)
    assert not (Path("/dev/shm") / name).exists()


def test_the_kind_follows_the_number() -> None:
    few = decoders.make_decoders(4, 16, NUMBERS, Limits(), 2**20)
    many = decoders.make_decoders(5, 16, NUMBERS, Limits(), 2**20)
    try:
        assert isinstance(few, ThreadDecoders)
        assert isinstance(many, ProcessDecoders)
    finally:
        few.close(cancel=True)
        many.close(cancel=True)


def test_a_killed_process_is_said_and_does_not_hang(images: list[bytes]) -> None:
    import os
    import signal
    from concurrent.futures.process import BrokenProcessPool

    mine = ProcessDecoders(1, len(images), NUMBERS, Limits(), 0)
    mine.submit(images).result()
    os.kill(next(iter(mine._pool._processes)), signal.SIGKILL)

    def until_it_is_noticed() -> None:
        for _ in range(100):
            mine.submit(images).result()

    with pytest.raises(BrokenProcessPool):
        until_it_is_noticed()
    mine.close(cancel=True)


def test_a_job_that_ends_before_its_processes_have_started_is_done(images: list[bytes]) -> None:
    mine = ProcessDecoders(6, len(images), NUMBERS, Limits(), 0)
    under_way = [mine.submit(images) for _ in range(6)]
    mine.close(cancel=False)
    assert [len(future.result(60).pixels) for future in under_way] == [len(images) - 2] * 6
