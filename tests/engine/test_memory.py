"""What the engine does with little memory, of the device and of the machine."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import ClipModel
from boring_assets.engine.pipeline import Options, embed_shards
from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import ModelError
from tests.engine.kinds import encoded, jpeg, picture
from tests.engine.shards import assert_same, embedded, make_shard
from tests.waiting import wait_for


def _short_of_memory(model: ClipModel, most: int) -> list[int]:
    """Makes the model fail like a device with room for only so many images; gives the sizes that it saw."""
    import torch

    inner, sizes = model.module.encode_image, []

    def limited(images: "torch.Tensor") -> object:
        sizes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("simulated")
        return inner(images)  # type: ignore[operator]

    model.module.encode_image = limited  # type: ignore[assignment, union-attr]
    return sizes


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    encoder: Encoder, tiny: ClipModel, tmp_path: Path
) -> None:
    shards = [make_shard(tmp_path, f"{n}", [jpeg(n * 40 + row) for row in range(40)]) for n in range(2)]
    wanted = embedded(list(embed_shards(shards, encoder)))
    starved = Encoder(tiny, device="cpu", precision="fp32", batch_size=32)
    sizes = _short_of_memory(tiny, 5)
    got = embedded(list(embed_shards(shards, starved)))
    assert starved.batch_size == 4
    assert sizes[0] == 32
    assert set(sizes) <= {32, 16, 8, 4}, "halved, one step at a time"
    sizes.clear()
    assert len(embedded(list(embed_shards(shards, starved)))) == 2
    assert max(sizes) == 4, "and never tried again"
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.embedded.tolist() == list(range(40))
        assert_same(ours.embeddings, theirs.embeddings)


def test_a_device_without_room_for_one_image_is_an_error(tiny: ClipModel, many: list[Shard]) -> None:
    encoder = Encoder(tiny, device="cpu", precision="fp32", batch_size=8)
    _short_of_memory(tiny, 0)
    with pytest.raises(ModelError, match=r"cpu has too little memory .* boring-tiny"):
        list(embed_shards(many, encoder))


def test_little_read_ahead_takes_large_images(encoder: Encoder, tmp_path: Path) -> None:
    """Images past the whole allowance go through one by one, and what waits stays within it."""
    large = [encoded(picture(700, 500, seed), "BMP") for seed in range(6)]
    shards = [make_shard(tmp_path, f"{n}", [*large, b""]) for n in range(3)]
    results = embedded(
        list(embed_shards(shards, encoder, Options(read_ahead_bytes=100_000, decode_workers=1)))
    )
    assert [len(result.embedded) for result in results] == [6, 6, 6]
    assert [result.image_bytes for result in results] == [sum(map(len, large))] * 3
    for result in results:
        assert_same(result.embeddings, results[0].embeddings)


@pytest.mark.parametrize(
    ("image", "rows", "options", "most"),
    [
        (encoded(picture(700, 500), "BMP"), 4, Options(read_ahead_bytes=8 * 2**20), 40),
        (jpeg(0, 32, 32), 50, Options(), 60),
    ],
    ids=["bytes", "images"],
)
def test_memory_does_not_grow_with_the_dataset(
    encoder: Encoder, tmp_path: Path, image: bytes, rows: int, options: Options, most: int
) -> None:
    """A model that stands still stops the reader: it opens no more shards than it may read ahead."""
    shard = make_shard(tmp_path, "0", [image] * rows)
    opened = []

    def listing() -> Iterator[Shard]:
        for number in range(500):
            opened.append(number)
            yield replace(shard, key=f"{number}")

    gate = threading.Event()
    forward = encoder.submit

    def slow(batch: list) -> object:
        gate.wait()
        return forward(batch)

    encoder.submit = slow  # type: ignore[method-assign, assignment]
    try:
        results = embed_shards(listing(), encoder, options)
        thread = threading.Thread(target=lambda: next(results), daemon=True)
        thread.start()
        wait_for(lambda: len(opened) > 2, "the reader is ahead of the model")
        seen = -1
        while len(opened) != seen:
            seen = len(opened)
            time.sleep(0.5)
        assert 2 < seen < most
        gate.set()
        thread.join()
        results.close()  # type: ignore[attr-defined]
    finally:
        encoder.submit = forward  # type: ignore[method-assign]


def test_decoding_limits_are_the_pipelines(encoder: Encoder, tmp_path: Path) -> None:
    from boring_assets.engine.decoding.limits import Limits

    small, large = jpeg(0, 50, 50), jpeg(0, 200, 200)
    options = Options(limits=Limits(pixels=10_000))
    (result,) = embedded(list(embed_shards([make_shard(tmp_path, "0", [large, small])], encoder, options)))
    assert result.embedded.tolist() == [1]
    assert result.failures[0].reason is Reason.TOO_LARGE
