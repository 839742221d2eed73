"""The whole engine: each row answered once and in order, whatever becomes of images, shards and memory."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.encoder import Encoder
from boring_assets.engine.model import ClipModel
from boring_assets.engine.pipeline import EmbeddedShard, FailedShard, Options, Progress, embed_shards
from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import ModelError, ShardError
from tests.engine.kinds import encoded, jpeg, picture, shard_at, write_tar


def make_shard(folder: Path, name: str, images: list[bytes | None]) -> Shard:
    """A shard with its images in a column."""
    table = pa.table(
        {"key": [f"{name}-{row}" for row in range(len(images))], "jpg": pa.array(images, pa.binary())}
    )
    pq.write_table(table, folder / f"{name}.parquet")
    return shard_at(folder / f"{name}.parquet")


def embedded(results: list[EmbeddedShard | FailedShard]) -> list[EmbeddedShard]:
    """The same, after it was found that each row of each has been answered once."""
    good = []
    for result in results:
        assert isinstance(result, EmbeddedShard), result
        assert result.rows.num_rows == len(result.embedded) + len(result.failures)
        assert sorted([*result.embedded.tolist(), *result.failures]) == list(range(result.rows.num_rows))
        assert result.embedded.tolist() == sorted(result.embedded.tolist())
        assert result.embeddings.shape[0] == len(result.embedded)
        assert result.embeddings.dtype == np.float32
        assert np.allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)
        good.append(result)
    return good


def alone(encoder: Encoder, folder: Path, image: bytes) -> np.ndarray:
    """The embedding of one image in a shard of its own."""
    (result,) = embedded(list(embed_shards([make_shard(folder, "alone", [image])], encoder)))
    return result.embeddings[0]


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for the last bits, which hang on the size of a batch."""
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max(initial=0) < 1e-4


@pytest.mark.parametrize(
    ("folder", "rows", "good"),
    [("webdataset", 600, 571), ("files", 300, 289), ("parquet", 600, 571), ("parquet_webp", 300, 289),
     ("webdataset_raw", 300, 288)],
)  # fmt: skip
def test_every_row_of_real_shards_is_accounted_for(
    encoder: Encoder, shared_data: Path, folder: str, rows: int, good: int
) -> None:
    shards = [shard_at(path) for path in sorted((shared_data / folder).glob("*.parquet"))]
    progress = Progress()
    results = embedded(list(embed_shards(shards, encoder, progress=progress)))
    assert [result.shard for result in results] == shards
    assert sum(result.rows.num_rows for result in results) == rows
    assert sum(len(result.embedded) for result in results) == good
    assert (progress.embedded, progress.failed) == (good, rows - good)
    for result in results:
        status = result.rows["status"].to_pylist()
        for row, failure in result.failures.items():
            wanted = Reason.DECODE_ERROR if status[row] == "success" else Reason.NOT_DOWNLOADED
            assert failure.reason is wanted, (row, failure)
            assert failure.detail
        assert result.image_bytes > 0


def test_rows_keep_their_place_in_shards_that_share_batches(encoder: Encoder, tmp_path: Path) -> None:
    """Shards of 1 to 37 rows in batches of 16, with tars in another order and bad images among the good."""
    rng = np.random.default_rng(0)
    shards, images = [], []
    for number, size in enumerate([5, 1, 37, 3, 2, 16, 0, 9]):
        ours: list[bytes | None] = [jpeg(100 * number + row) for row in range(size)]
        for row in range(0, size, 7):
            ours[row] = [b"", None, b"<html>"][row % 3] if number % 2 == 0 else ours[row]
        if number % 3:
            shards.append(make_shard(tmp_path, f"{number:05}", ours))
        else:
            path = tmp_path / f"{number:05}.parquet"
            pq.write_table(pa.table({"key": pa.array([str(row) for row in range(size)], pa.string())}), path)
            order = rng.permutation(size).tolist()
            write_tar(path.with_suffix(".tar"), [(f"{row}.jpg", ours[row] or b"") for row in order])
            shards.append(shard_at(path))
        images.append(ours)
    calls: list[int] = []
    forward = encoder.submit

    def watched(batch: list) -> object:
        calls.append(sum(map(len, batch)))
        return forward(batch)

    encoder.submit = watched  # type: ignore[method-assign, assignment]
    try:
        results = embedded(list(embed_shards(shards, encoder)))
    finally:
        encoder.submit = forward  # type: ignore[method-assign]
    assert {result.shard.key: result.rows.num_rows for result in results} == {
        shard.key: len(ours) for shard, ours in zip(shards, images, strict=True)
    }
    assert set(calls[:-1]) == {16}, "only the last batch is not full"
    by_key = {result.shard.key: result for result in results}
    for shard, ours in zip(shards, images, strict=True):
        result = by_key[shard.key]
        good = [row for row, image in enumerate(ours) if image and image != b"<html>"]
        assert result.embedded.tolist() == good
        for row, vector in list(zip(good, result.embeddings, strict=True))[::4]:
            assert_same(vector, alone(encoder, tmp_path, ours[row]))  # type: ignore[arg-type]


def test_a_bad_shard_costs_itself_alone(encoder: Encoder, tmp_path: Path) -> None:
    good = [make_shard(tmp_path, f"good-{n}", [jpeg(n * 10 + row) for row in range(20)]) for n in range(3)]
    (tmp_path / "html.parquet").write_bytes(b"<html>" * 100)
    cut = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"key": [f"{row}" for row in range(60)]}), cut)
    write_tar(cut.with_suffix(".tar"), [(f"{row}.jpg", jpeg(row)) for row in range(60)])
    whole = cut.with_suffix(".tar").read_bytes()
    cut.with_suffix(".tar").write_bytes(whole[: len(whole) // 2 + 100])
    missing = shard_at(tmp_path / "missing.parquet")
    shards = [good[0], shard_at(tmp_path / "html.parquet"), good[1], shard_at(cut), missing, good[2]]
    results = list(embed_shards(shards, encoder))
    failed = {result.shard.key: result.error for result in results if isinstance(result, FailedShard)}
    assert sorted(failed) == ["cut", "html", "missing"]
    for key, error in failed.items():
        assert isinstance(error, ShardError)
        assert f"{key}." in str(error)
    assert "cut.tar" in str(failed["cut"])
    survivors = embedded([result for result in results if isinstance(result, EmbeddedShard)])
    assert {result.shard.key for result in survivors} == {"good-0", "good-1", "good-2"}
    for result in survivors:
        number = int(result.shard.key[-1])
        assert_same(result.embeddings[13], alone(encoder, tmp_path, jpeg(number * 10 + 13)))


def test_nothing_at_all(encoder: Encoder, tmp_path: Path) -> None:
    assert list(embed_shards([], encoder)) == []
    empty = make_shard(tmp_path, "empty", [])
    hopeless = make_shard(tmp_path, "hopeless", [None, b"", b"<html>"])
    results = embedded(list(embed_shards([empty, hopeless, empty], encoder)))
    assert Counter(result.rows.num_rows for result in results) == {0: 2, 3: 1}
    assert all(result.embeddings.shape == (0, encoder.dim) for result in results)


def test_max_rows_counts_over_shards_and_says_what_was_left(encoder: Encoder, tmp_path: Path) -> None:
    shards = [make_shard(tmp_path, f"{n}", [jpeg(row) for row in range(10)]) for n in range(4)]
    for most, wanted in (
        (25, [(10, 0), (10, 0), (5, 5)]),
        (10, [(10, 0)]),
        (3, [(3, 7)]),
        (99, [(10, 0)] * 4),
    ):
        results = embedded(list(embed_shards(shards, encoder, Options(max_rows=most))))
        assert [(result.rows.num_rows, result.cut) for result in results] == wanted


def _threads() -> set[threading.Thread]:
    """Those of this process, but for the encoder's own, which stay with it."""
    return {one for one in threading.enumerate() if one.is_alive() and not one.name.startswith("forward")}


def _wait_for_the_end_of(before: set[threading.Thread]) -> None:
    deadline = time.monotonic() + 20
    while (left := _threads() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, f"still alive: {sorted(thread.name for thread in left)}"


@pytest.fixture
def many(tmp_path: Path) -> list[Shard]:
    """Tars and columns, enough that the end of the first is far from the end of all."""
    shards = []
    for number in range(30):
        images: list[bytes | None] = [jpeg(row) for row in range(40)]
        if number % 2:
            shards.append(make_shard(tmp_path, f"{number:05}", images))
        else:
            path = tmp_path / f"{number:05}.parquet"
            pq.write_table(pa.table({"key": [f"{row}" for row in range(40)]}), path)
            write_tar(
                path.with_suffix(".tar"), [(f"{row}.jpg", image or b"") for row, image in enumerate(images)]
            )
            shards.append(shard_at(path))
    return shards


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_caller_that_leaves_early_leaves_no_threads(
    encoder: Encoder, many: list[Shard], taken: int
) -> None:
    list(embed_shards(many[:1], encoder))  # torch starts threads of its own, once
    before = _threads()
    progress = Progress()
    results = embed_shards(many, encoder, Options(read_ahead_bytes=2**20), progress=progress)
    for _ in range(taken):
        next(results)
    results.close()  # type: ignore[attr-defined]
    _wait_for_the_end_of(before)
    assert progress.embedded < 30 * 40


def test_an_error_of_the_device_reaches_the_caller(many: list[Shard], tiny: ClipModel) -> None:
    encoder = Encoder(tiny, device="cpu", precision="fp32", batch_size=16)
    before = _threads()
    inner, calls = tiny.module.encode_image, iter(range(100))

    def broken(images: object) -> object:
        if next(calls) >= 6:
            raise RuntimeError("the device fell off the bus")
        return inner(images)  # type: ignore[operator]

    tiny.module.encode_image = broken  # type: ignore[assignment, union-attr]
    finished: list[EmbeddedShard | FailedShard] = []
    with pytest.raises(RuntimeError, match="fell off the bus"):
        finished.extend(embed_shards(many, encoder))
    assert len(embedded(finished)) <= 6 * 16 // 40
    _wait_for_the_end_of(before)


def test_an_error_of_the_list_of_shards_reaches_the_caller(encoder: Encoder, many: list[Shard]) -> None:
    def listing() -> Iterator[Shard]:
        yield from many[:3]
        raise OSError("the listing broke off")

    before = _threads()
    with pytest.raises(OSError, match="the listing broke off"):
        list(embed_shards(listing(), encoder))
    _wait_for_the_end_of(before)


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


def test_memory_does_not_grow_with_the_dataset(encoder: Encoder, tmp_path: Path) -> None:
    """A model that stands still stops the reader: it opens no more shards than it may read ahead."""
    shard = make_shard(tmp_path, "large", [encoded(picture(700, 500), "BMP")] * 4)
    opened = []

    def listing() -> Iterator[Shard]:
        for number in range(500):
            opened.append(number)
            yield replace(shard, key=f"{number}")

    gate = threading.Event()
    forward = encoder.submit

    def slow(batch: list) -> object:
        gate.wait(30)
        return forward(batch)

    encoder.submit = slow  # type: ignore[method-assign, assignment]
    try:
        results = embed_shards(listing(), encoder, Options(read_ahead_bytes=8 * 2**20))
        thread = threading.Thread(target=lambda: next(results), daemon=True)
        thread.start()
        seen = -1
        while len(opened) != seen:
            seen = len(opened)
            time.sleep(0.5)
        assert 2 < seen < 40
        gate.set()
        thread.join()
        results.close()  # type: ignore[attr-defined]
    finally:
        encoder.submit = forward  # type: ignore[method-assign]


def test_decoding_limits_are_the_pipelines(encoder: Encoder, tmp_path: Path) -> None:
    from boring_assets.engine.limits import Limits

    small, large = jpeg(0, 50, 50), jpeg(0, 200, 200)
    options = Options(limits=Limits(pixels=10_000))
    (result,) = embedded(list(embed_shards([make_shard(tmp_path, "0", [large, small])], encoder, options)))
    assert result.embedded.tolist() == [1]
    assert result.failures[0].reason is Reason.TOO_LARGE


def test_what_is_done_with_finished_shards_is_done_to_several_at_once(
    encoder: Encoder, tmp_path: Path
) -> None:
    """Writing is mostly waiting: it must not stop the next shard's, nor what is embedded meanwhile."""
    shards = [make_shard(tmp_path, f"{n}", [jpeg(row) for row in range(10)]) for n in range(9)]
    together = threading.Barrier(3, timeout=60)

    def write(result: EmbeddedShard) -> str:
        together.wait()
        return result.shard.key

    assert sorted(embed_shards(shards, encoder, then=write)) == [f"{n}" for n in range(9)]


def test_an_error_of_writing_stops_all_and_leaves_nothing_behind(encoder: Encoder, many: list[Shard]) -> None:
    before, written = _threads(), []

    def write(result: EmbeddedShard) -> None:
        if len(written) == 3:
            raise OSError("the disk is full")
        written.append(result.shard.key)

    with pytest.raises(OSError, match="the disk is full"):
        list(embed_shards(many, encoder, then=write))
    _wait_for_the_end_of(before)
    assert 3 <= len(written) < len(many)
