"""The index holds just what is committed, whatever happened before: changes, kills, two updates at once."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.errors import SettingsError, StorageError
from boring_assets.output.files import write_table
from boring_assets.search import index
from boring_assets.search.index import has_vector_index, update_index
from boring_assets.search.lance import open_table
from boring_assets.search.query import Searcher
from boring_assets.settings import Settings
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import finished_shard
from tests.search.dataset import DIM, FACTS, commit, commit_vectors, contents
from tests.seaweed import Seaweed
from tests.waiting import HANG_SECONDS


@pytest.fixture
def output(tmp_path: Path) -> EmbeddingsIOManager:
    return EmbeddingsIOManager(output_dir=str(tmp_path / "out"))


def expected(**shards: np.ndarray) -> dict[tuple[str, int], list[float]]:
    return {
        (key, row): list(map(float, vector)) for key, its in shards.items() for row, vector in enumerate(its)
    }


@pytest.mark.parametrize("place", ["local", "s3"])
def test_the_index_follows_new_changed_gone_and_unchanged_shards(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("s3_env").new_prefix() if place == "s3" else str(tmp_path)
    output = EmbeddingsIOManager(output_dir=folder)
    root = output.root()
    with pytest.raises(StorageError, match="Nothing is embedded"):
        update_index(root)
    a, b = commit(output, "a"), commit(output, "deep/b", rows=3)
    done = update_index(root)
    assert (done.added, done.removed, done.rows) == (2, 0, 8)
    assert contents(root) == expected(**{"a": a, "deep/b": b})

    version = open_table(root).version
    assert update_index(root).added == 0
    assert open_table(root).version == version, "an update with nothing to do wrote something"

    a, c = commit(output, "a", rows=7, seed=1), commit(output, "c")
    done = update_index(root)
    assert (done.added, done.removed, done.rows) == (2, 1, 15)
    root.fs.rm_file(f"{root.path}/image_embeddings/deep/b.parquet")
    done = update_index(root)
    assert (done.added, done.removed, done.rows) == (0, 1, 12)
    assert contents(root) == expected(a=a, c=c)


def test_missing_s3_credentials_are_reported(s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    output = EmbeddingsIOManager(output_dir=s3_env.new_prefix())
    commit(output, "a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_env.reader_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_env.reader_secret)
    with pytest.raises(StorageError, match="Cannot write") as caught:
        update_index(EmbeddingsIOManager(output_dir=output.output_dir).root())
    assert s3_env.reader_secret not in str(caught.value)
    assert s3_env.secret not in str(caught.value)


def test_unsupported_columns_are_left_out_alone(output: EmbeddingsIOManager) -> None:
    ids = [uuid.UUID(int=number) for number in range(5)]
    storage = pa.array([one.bytes for one in ids], pa.binary(16))
    columns = {
        "a.b": [1] * 5,
        "a`b": ["x"] * 5,
        "a\0b": [2] * 5,
        "a_b": [3] * 5,
        "hash": pa.array([2**64 - 1 - number for number in range(5)], pa.uint64()),
        "id": pa.ExtensionArray.from_storage(pa.uuid(), storage),
        "box": [[1, 2]] * 5,
        "when": pa.array([0] * 5, pa.timestamp("us", "Nowhere/Nothing")),
    }
    vectors = commit(output, "a", **columns)
    commit(output, "b")
    done = update_index(output.root())
    assert (done.rows, done.failed) == (10, {})
    assert set(contents(output.root())) == {(key, row) for key in "ab" for row in range(5)}
    assert done.columns["meta_a.b"] == "is meta_a_b_2 in the index"
    assert "meta_a_b" not in done.columns
    assert done.columns["meta_box"].startswith("left out")
    searcher = Searcher(Settings(output_dir=output.output_dir), output.root())
    (best,) = searcher.nearest(vectors[3], limit=1, where=f"meta_hash = {2**64 - 4}")
    assert (best.partition, best.row) == ("a", 3)
    assert best.meta["meta_hash"] == 2**64 - 4
    assert best.meta["meta_id"] == str(ids[3])
    assert (best.meta["meta_a_b"], best.meta["meta_a_b_2"]) == (3, 1)
    assert update_index(output.root()).columns == {}


def test_rows_are_those_of_the_input_in_files_of_earlier_versions_too(output: EmbeddingsIOManager) -> None:
    """They have no column `row`: the failures file says which rows are missing among the embedded ones."""
    root = output.root()
    for key in ("old", "new", "broken"):
        shard = finished_shard(key, embedded=3, failed=2, dim=DIM)
        places = np.array([0, 2, 4])
        failures = dict(zip((1, 3), shard.failures.values(), strict=True))
        output.commit(replace(shard, embedded=places, failures=failures), FACTS)
        if key != "new":
            table = pq.read_table(output.uri(key).removeprefix("file://"))
            write_table(root, f"image_embeddings/{key}.parquet", table.drop_columns(["row"]))
    root.fs.rm_file(f"{root.path}/image_failures/broken.parquet")
    done = update_index(root)
    assert set(contents(root)) == {(key, row) for key in ("old", "new") for row in (0, 2, 4)}
    assert list(done.failed) == ["broken"]
    assert "--repair" in done.failed["broken"]


def test_an_index_that_counts_rows_as_earlier_versions_did_is_built_again(
    output: EmbeddingsIOManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(output, "a")
    with monkeypatch.context() as patch:
        patch.setattr(index, "_ROWS", None)
        assert update_index(output.root()).rebuilt
    assert update_index(output.root()).rebuilt
    assert not update_index(output.root()).rebuilt


KILLED = """
import os, sys
from boring_assets.search import index
from resources.embeddings_io import EmbeddingsIOManager
index._GROUP_BYTES = 1
left = int(sys.argv[2])
def commit(table, name):
    plain = getattr(type(table), name)
    def counted(self, *arguments, **options):
        global left
        if not left:
            os.kill(os.getpid(), 9)
        left -= 1
        return plain(self, *arguments, **options)
    setattr(type(table), name, counted)
opened = index.open_table
def wrapped(root):
    table = opened(root)
    for name in ("add", "delete", "optimize"):
        commit(table, name)
    return table
index.open_table = wrapped
index.update_index(EmbeddingsIOManager(output_dir=sys.argv[1]).root())
"""


@pytest.mark.parametrize("commits", [0, 1, 2, 3])
def test_an_update_killed_between_any_two_commits_is_mended_by_the_next(
    output: EmbeddingsIOManager, commits: int
) -> None:
    root = output.root()
    for key in "abc":
        commit(output, key)
    update_index(root)
    a, d = commit(output, "a", rows=2, seed=5), commit(output, "d")
    root.fs.rm_file(f"{root.path}/image_embeddings/b.parquet")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, output.output_dir, str(commits)],
        env=os.environ,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    update_index(root)
    c = commit(output, "c")  # the same vectors again: made by a seed
    update_index(root)
    assert contents(root) == expected(a=a, c=c, d=d)


def test_two_updates_at_once_leave_each_row_once(output: EmbeddingsIOManager) -> None:
    root = output.root()
    shards = {"first": commit(output, "first")}
    update_index(root)
    shards |= {f"s{number}": commit(output, f"s{number}") for number in range(6)}
    threads = [threading.Thread(target=update_index, args=(output.root(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    update_index(root)
    assert contents(root) == expected(**shards)


def test_an_unreadable_file_does_not_fail_the_others(output: EmbeddingsIOManager) -> None:
    root = output.root()
    good = commit(output, "good")
    commit(output, "bad")
    path = Path(root.path) / "image_embeddings" / "bad.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    done = update_index(root)
    assert list(done.failed) == ["bad"]
    assert "bad.parquet" in done.failed["bad"]
    assert contents(root) == expected(good=good)
    path.write_bytes(whole)
    assert update_index(root).failed == {}
    assert len(contents(root)) == 10


def test_vectors_of_another_model_are_indexed_only_when_all_are_of_it(output: EmbeddingsIOManager) -> None:
    root = output.root()
    a, _ = commit(output, "a"), commit(output, "b")
    update_index(root)
    other = FACTS | {"weights_digest": "4567", "model": "other"}
    new_b = commit(output, "b", seed=1, facts=other)
    done = update_index(root)
    assert done.other_model == ["b"]
    assert contents(root) == expected(a=a)
    new_a = commit(output, "a", seed=1, facts=other)
    done = update_index(root)
    assert done.rebuilt
    assert contents(root) == expected(a=new_a, b=new_b)


def test_shards_need_not_agree_on_their_columns(output: EmbeddingsIOManager) -> None:
    root = output.root()
    settings = Settings(output_dir=output.output_dir)
    commit(output, "a", size=pa.array(range(5), pa.int32()), nothing=pa.nulls(5), deep=[{"x": 1}] * 5)
    update_index(root)
    commit(output, "b", licence=["?"] * 5, size=pa.array(range(5), pa.int64()))
    assert not update_index(root).rebuilt
    assert str(Searcher(settings, root).columns["meta_size"]) == "int64"
    commit(output, "c", size=["large"] * 5)
    assert update_index(root).rebuilt
    columns = {name: str(kind) for name, kind in Searcher(settings, root).columns.items() if "meta" in name}
    assert columns == {"meta_size": "string", "meta_licence": "string"}
    found = open_table(root).search().where("meta_size IN ('4', 'large')").select(["partition"]).to_arrow()
    assert sorted(found["partition"].to_pylist()) == ["a", "b", *["c"] * 5]


@pytest.mark.parametrize("dim", [16, 256])
def test_large_tables_are_indexed_and_still_find_the_nearest(
    dim: int, output: EmbeddingsIOManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = output.root()
    monkeypatch.setattr(index, "INDEXED_FROM", 1000)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(80, dim))

    def draw(count: int) -> np.ndarray:
        made = centres[rng.integers(80, size=count)] + 0.5 * rng.normal(size=(count, dim))
        return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)

    def more(key: str, count: int) -> np.ndarray:
        made = draw(count)
        commit_vectors(output, key, made, FACTS | {"dim": dim}, half=pa.array(np.arange(count) % 2))
        return made

    first = more("a", 900)
    update_index(root)
    assert not has_vector_index(open_table(root))
    vectors = np.concatenate([first, more("b", 900)])
    update_index(root)
    names = [one.name for one in open_table(root).list_indices()]
    assert names == ["vector_1800"]
    vectors = np.concatenate([vectors, more("c", 200)])
    update_index(root)
    stats = open_table(root).index_stats("vector_1800")
    assert (stats.num_indexed_rows, stats.num_unindexed_rows) == (2000, 0)
    vectors = np.concatenate([vectors, more("d", 6000)])
    update_index(root)
    assert [one.name for one in open_table(root).list_indices()] == ["vector_8000"]

    searcher = Searcher(Settings(output_dir=output.output_dir), root)
    places = [
        (key, row) for key, count in (("a", 900), ("b", 900), ("c", 200), ("d", 6000)) for row in range(count)
    ]
    right = 0
    for query in draw(20):
        best = {places[number] for number in np.argsort(-(vectors @ query))[:10]}
        right += len(best & {(hit.partition, hit.row) for hit in searcher.nearest(query, limit=10)})
    assert right >= 190  # of 200
    odd = searcher.nearest(vectors[0], limit=1000, where="meta_half = 1")
    assert len(odd) == 1000
    assert all(hit.meta["meta_half"] == 1 for hit in odd)
    assert [hit.score for hit in odd] == sorted((hit.score for hit in odd), reverse=True)
    pages = [hit for start in (0, 40, 80) for hit in searcher.nearest(vectors[0], limit=40, offset=start)]
    assert [(hit.partition, hit.row) for hit in pages] == [
        (hit.partition, hit.row) for hit in searcher.nearest(vectors[0], limit=120)
    ]


def test_a_filesystem_that_lancedb_cannot_write_to_is_reported() -> None:
    output = EmbeddingsIOManager(output_dir="memory://somewhere")
    commit(output, "a")
    with pytest.raises(SettingsError, match="cannot write to memory://"):
        update_index(output.root())


def test_without_lancedb_the_extra_is_named(
    output: EmbeddingsIOManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(output, "a")
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(SettingsError, match=r"boring_assets\[search\]"):
        update_index(output.root())
