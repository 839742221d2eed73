"""The whole engine: each row answered once and in order, whatever becomes of images, shards and memory."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import ClipModel
from boring_assets.engine.pipeline import EmbeddedShard, FailedShard, Options, Progress, embed_shards
from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import ShardError
from tests.engine.kinds import jpeg, shard_at, write_tar
from tests.engine.resizing import ResizingEncoder
from tests.engine.shards import alone, assert_same, embedded, make_shard
from tests.waiting import HANG_SECONDS, wait_for


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


def test_a_bad_shard_fails_alone(encoder: Encoder, tmp_path: Path) -> None:
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
    wait_for(lambda: not _threads() - before, "the threads have ended", lambda: _threads() - before)


@pytest.mark.parametrize("previews", [0, 3])
def test_images_that_the_device_resizes_give_the_same(
    tiny: ClipModel, encoder: Encoder, shared_data: Path, previews: int
) -> None:
    """Images of many sizes, from threads and from processes, and their contact sheets."""
    shards = [shard_at(path) for path in sorted((shared_data / "webdataset").glob("*.parquet"))]
    resizing = ResizingEncoder(tiny, device="cpu", precision="fp32", batch_size=16)
    wanted = embedded(list(embed_shards(shards, encoder, Options(previews=previews))))
    for workers in (2, 6):
        resizing.resized = 0
        options = Options(decode_workers=workers, previews=previews)
        found = {one.shard.key: one for one in embedded(list(embed_shards(shards, resizing, options)))}
        assert resizing.resized > 400
        for one in wanted:
            mine = found[one.shard.key]
            assert mine.failures == one.failures
            assert (mine.embeddings * one.embeddings).sum(axis=1).min() > 0.999
            assert [row for row, _ in mine.previews] == [row for row, _ in one.previews]
            for (_, mine_image), (_, image) in zip(mine.previews, one.previews, strict=True):
                assert np.array_equal(mine_image, image)


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


def test_what_is_done_with_finished_shards_is_done_to_several_at_once(
    encoder: Encoder, tmp_path: Path
) -> None:
    """Writing is mostly waiting: it must not stop the next shard's, nor what is embedded meanwhile."""
    shards = [make_shard(tmp_path, f"{n}", [jpeg(row) for row in range(10)]) for n in range(9)]
    together = threading.Barrier(3, timeout=HANG_SECONDS)

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
