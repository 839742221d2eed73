"""The commit of a partition that two runs write at once."""

from pathlib import Path

import pytest

from boring_assets.errors import StorageError
from boring_assets.output import commit
from boring_assets.output.measures import measure
from boring_assets.output.verify import check_files
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, FAILURES
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import finished_shard

FACTS = {"model": "m", "settings": "s", "dim": 8}


def interleave(manager: EmbeddingsIOManager, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Another run commits another version of the shard each time that this one's failures are written."""
    left = list(range(times))

    def overtaken(root: Root, path: str, data: object) -> None:
        write_bytes(root, path, data)  # type: ignore[arg-type]
        if path.startswith(FAILURES) and left:
            left.pop()
            with monkeypatch.context() as patch:
                patch.setattr(commit, "write_bytes", write_bytes)
                manager.commit(finished_shard("a", 5, 3, version="v2"), FACTS)

    monkeypatch.setattr(commit, "write_bytes", overtaken)


def test_the_two_files_of_a_partition_are_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    paths = [f"{kind}/a.parquet" for kind in (EMBEDDINGS, FAILURES)]
    interleave(manager, monkeypatch, 3)
    manager.commit(finished_shard("a", 6, 2, version="v1"), FACTS)
    checked = check_files(manager.root(), *paths)
    assert (checked.findings, checked.facts["source_version"]) == ([], "v1")
    one = measure(manager.root(), "a")
    assert (one.error, one.embedded, one.failures) == ("", 6, 2)


def test_a_run_whose_files_are_always_overwritten_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    monkeypatch.setattr(commit, "_PAUSE_SECONDS", 0)
    interleave(manager, monkeypatch, 1000)
    with pytest.raises(StorageError, match=r"image_failures/a\.parquet was written by another run 10 times"):
        manager.commit(finished_shard("a", 6, 2, version="v1"), FACTS)


def test_a_run_that_was_killed_between_its_files_is_seen(tmp_path: Path) -> None:
    """Both have as many failures, so that the counts alone would tell nothing."""
    manager = EmbeddingsIOManager(output_dir=str(tmp_path))
    other = EmbeddingsIOManager(output_dir=str(tmp_path / "other"))
    manager.commit(finished_shard("a", 6, 2, version="v1"), FACTS)
    assert check_files(manager.root(), f"{EMBEDDINGS}/a.parquet", f"{FAILURES}/a.parquet").findings == []
    other.commit(finished_shard("a", 6, 2, version="v2", failure="cut short"), FACTS)
    (tmp_path / "other" / FAILURES / "a.parquet").replace(tmp_path / FAILURES / "a.parquet")
    (found,) = check_files(manager.root(), f"{EMBEDDINGS}/a.parquet", f"{FAILURES}/a.parquet").findings
    assert "written by another run" in found.text
    assert "written by another run" in measure(manager.root(), "a").error
