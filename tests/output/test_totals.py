"""`metadata.json`: always what is committed, however many write it at once."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import StorageError
from boring_assets.output import totals
from boring_assets.output.totals import refresh_totals
from boring_assets.storage.root import Root, open_root
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import finished_shard
from tests.seaweed import Seaweed, free_ports
from tests.waiting import HANG_SECONDS

FACTS = {"model": "m", "pretrained": "", "weights_digest": "d", "precision": "fp32", "dim": 8}


def commit_some(output: str, worker: int, shards: int) -> None:
    """What a run does, at its fastest; `metadata.json` is refreshed after each shard."""
    manager = EmbeddingsIOManager(output_dir=output)
    for shard in range(shards):
        manager.commit(finished_shard(f"{worker}/{shard:05d}", 10 + shard, worker), FACTS)
        refresh_totals(manager.root())


def written(root: Root) -> dict[str, Any]:
    return json.loads(root.fs.cat_file(f"{root.path}/metadata.json"))  # type: ignore[no-any-return]


def test_processes_that_commit_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=commit_some, args=(str(tmp_path), worker, 40)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(HANG_SECONDS)
    assert [worker.exitcode for worker in workers] == [0, 0]
    totals = written(open_root(str(tmp_path)))
    assert totals["num_shards"] == 80
    assert totals["num_samples"] == 2 * sum(range(10, 50))
    assert totals["num_failed"] == 40 * (0 + 1)
    assert list((tmp_path / ".staging").iterdir()) == []


def test_threads_that_commit_at_once_on_s3(s3_env: Seaweed) -> None:
    output = s3_env.new_prefix()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda worker: commit_some(output, worker, 4), range(4)))
    totals = written(open_root(output))
    assert (totals["num_shards"], totals["num_samples"], totals["num_failed"]) == (16, 4 * 46, 4 * 6)


class CountingFileSystem(LocalFileSystem):
    """The local disk, with a list of the parquet files that were opened."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith(".parquet"):
            self.opened.append(Path(path).stem)
        return super()._open(path, *args, **kwargs)


def test_only_changed_files_are_opened_again(tmp_path: Path) -> None:
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    fs = CountingFileSystem()
    root = Root(f"file://{tmp_path}", fs, str(tmp_path))

    def opened() -> list[str]:
        fs.opened.clear()
        refresh_totals(root)
        return sorted(fs.opened)

    for key in "abc":
        manager.commit(finished_shard(key), FACTS)
    assert opened() == ["a", "b", "c"]
    assert opened() == []
    manager.commit(finished_shard("b", 20, 0), FACTS)
    manager.commit(finished_shard("d"), FACTS)
    (tmp_path / "image_embeddings" / "c.parquet").unlink()
    assert opened() == ["b", "d"]
    totals = written(root)
    assert (totals["num_shards"], totals["num_samples"], totals["num_failed"]) == (3, 6 + 20 + 6, 4)
    # What is remembered is only a shortcut: a damaged file is left, and what it held is read again.
    for count in (tmp_path / ".counts").iterdir():
        for damaged in ("not json", "[1]", '{"a": 1}', '{"d": []}'):
            count.write_text(damaged)
            opened()
            assert written(root)["num_samples"] == 32
    assert opened() == []


def test_a_run_opens_and_writes_only_what_it_changed(tmp_path: Path) -> None:
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    fs = CountingFileSystem()
    root = Root(f"file://{tmp_path}", fs, str(tmp_path))
    for number in range(40):
        manager.commit(finished_shard(f"{number:05}"), FACTS)
    refresh_totals(root, [f"{number:05}" for number in range(40)])
    assert written(root)["num_shards"] == 40
    manager.commit(finished_shard("00007", 20, 0), FACTS)
    (tmp_path / "image_embeddings" / "00030.parquet").unlink()
    before = {path: path.stat().st_ino for path in (tmp_path / ".counts").iterdir()}
    fs.opened.clear()
    refresh_totals(root, ["00007"])
    assert fs.opened == ["00007"]
    after = {path: path.stat().st_ino for path in (tmp_path / ".counts").iterdir()}
    assert len({path for path in after if after[path] != before[path]}) == 2, "one bucket, and the sums"
    assert written(root)["num_samples"] == 39 * 6 + 20
    refresh_totals(root, ["00030"])
    assert (written(root)["num_shards"], written(root)["num_failed"]) == (39, 38 * 2)
    assert refresh_totals(root) == written(root)


def test_the_numbers_are_numbers_and_differences_are_listed(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    empty = refresh_totals(root)
    assert (empty["num_samples"], empty["num_shards"], empty["model"]) == (0, 0, None)
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    manager.commit(finished_shard("a"), FACTS)
    assert refresh_totals(root)["dim"] == 8
    manager.commit(finished_shard("b"), FACTS | {"dim": 16, "model": "n"})
    totals = refresh_totals(root)
    assert totals == written(root)
    assert (totals["dim"], totals["model"], totals["precision"]) == ([8, 16], ["m", "n"], "fp32")


def test_foreign_files_are_not_counted(tmp_path: Path) -> None:
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    manager.commit(finished_shard("a"), FACTS)
    (tmp_path / "image_embeddings" / "foreign.parquet").write_bytes(b"no parquet")
    (tmp_path / "image_embeddings" / "notes.txt").write_text("mine")
    totals = refresh_totals(manager.root())
    assert (totals["num_shards"], totals["num_samples"]) == (1, 6)


def test_an_output_that_cannot_be_reached_is_named(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    for name, value in (s3.env | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"s3://boring/out.*does not answer"):
        refresh_totals(open_root("s3://boring/out"))


def test_an_old_count_never_replaces_a_newer_one(s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run commits and counts each time that this one has counted and not yet written."""
    output = s3_env.new_prefix()
    manager = EmbeddingsIOManager(output_dir=output)
    manager.commit(finished_shard("first"), FACTS)
    inner, left = totals.file_versions, list(range(40))

    def overtaken(root: Root, folder: str) -> dict[str, str]:
        found = inner(root, folder)
        if left:
            number = left.pop()
            with monkeypatch.context() as patch:
                patch.setattr(totals, "file_versions", inner)
                manager.commit(finished_shard(f"{number:05}"), FACTS)
                refresh_totals(manager.root())
        return found

    monkeypatch.setattr(totals, "file_versions", overtaken)
    refresh_totals(manager.root())
    assert len(left) < 40
    assert written(open_root(output))["num_shards"] == len(manager.committed())
