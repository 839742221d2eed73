"""One output, one model: every way in by which another model's vectors could come beside what stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from boring_assets.commands.embedding import embed_all
from boring_assets.errors import StorageError
from boring_assets.output.files import write_table
from boring_assets.output.schema import METADATA_KEY, read_facts
from boring_assets.sample_data import write_sample_data
from boring_assets.tags import REDO_TAG
from boring_assets.tiny import TINY_DIR
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import Project, finished_shard

KEYS = ["00000", "00001", "00002"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A local model directory that a test may change."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_DIR, folder)
    return folder


def change_weights(model: Path) -> None:
    """Other weights under the same path, as when somebody trains on."""
    (file,) = model.glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.startswith("visual.") and weights[name].ndim == 2)
    weights[name] = weights[name] * 1.5
    save_file(weights, file)
    from resources import clip

    clip._loaded.clear()  # the next run is a new process


@pytest.fixture
def project(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    write_sample_data(tmp_path / "in", 3, 4, "parquet", image_size=32)
    made = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", model=str(model))
    made.register()
    return made


def digest(project: Project, key: str) -> str:
    return str(EmbeddingsIOManager.from_settings(project.settings).facts(key)["weights_digest"])


def test_weights_that_changed_under_the_same_path(project: Project, model: Path) -> None:
    assert project.run("00000", "00001").error == ""
    old = digest(project, "00000")
    change_weights(model)
    said = project.run("00002").error
    assert f"weights_digest {old} instead of " in said
    assert "boring-assets embed --redo" in said
    assert not project.path("00002").exists()
    result = project.run_anew("00000")
    assert not result.success, "a part of what is there, from the web UI"
    assert digest(project, "00000") == old

    summary = embed_all(project.settings, redo=True)
    assert (summary.shards, summary.failed_shards) == (3, {})
    assert len({digest(project, key) for key in KEYS} | {old}) == 2
    assert project.run_anew("00001").success


def test_another_home_and_other_settings_in_the_same_output(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.run("00000", "00001").error == ""
    write_sample_data(tmp_path / "in", 1, 4, "parquet", image_size=32, first_shard=7)
    other = Project(tmp_path / "home2", monkeypatch, tmp_path / "in", tmp_path / "out", precision="bf16")
    other.register()
    said = other.run("00007").error
    assert "precision fp32 instead of bf16" in said
    assert not other.path("00007").exists()
    # Without metadata.json, after a first run that was killed, the files themselves tell.
    (tmp_path / "out" / "metadata.json").unlink()
    assert "precision fp32 instead of bf16" in other.run("00007").error
    # All of it, in one run, is no mixing.
    mine = Project(project.home, monkeypatch, tmp_path / "in", tmp_path / "out", precision="bf16")
    assert mine.run_anew("00000", "00002").success


def test_adopted_partitions_are_compared_with_the_model_too(
    project: Project, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another home every partition is new to Dagster, and those that are committed are adopted."""
    assert project.run("00000", "00001").error == ""
    old = digest(project, "00000")
    change_weights(model)
    other = Project(tmp_path / "home2", monkeypatch, tmp_path / "in", tmp_path / "out", model=str(model))
    other.register()
    for number in range(2):
        said = other.run("00000", "00002").error
        assert f"weights_digest {old} instead of " in said, f"attempt {number}"
        assert not other.path("00002").exists()
    summary = embed_all(other.settings, redo=True)
    assert summary.shards == 3
    assert len({digest(other, key) for key in KEYS} | {old}) == 2


def test_an_output_of_two_models_is_not_adopted(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project.run("00000", "00002").error == ""
    table = project.table("00001")
    facts = read_facts(table.schema.metadata) | {"precision": "bf16"}  # as another kind of machine makes it
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})
    write_table(
        EmbeddingsIOManager.from_settings(project.settings).root(), "image_embeddings/00001.parquet", table
    )
    (tmp_path / "out" / "metadata.json").unlink()
    settings = {"model": project.settings.model}
    other = Project(tmp_path / "home2", monkeypatch, tmp_path / "in", tmp_path / "out", **settings)
    other.register()
    assert "00001 has precision bf16 instead of fp32" in other.run("00000", "00002").error
    assert other.events() == []


def test_all_partitions_in_a_backfill_of_several_runs_are_no_mixing(project: Project) -> None:
    from dagster._core.execution.backfill import PartitionBackfill

    from boring_assets.assets.mixing import backfilled
    from boring_assets.datasets import ASSET_KEY
    from boring_assets.definitions import build_definitions

    graph = build_definitions(project.settings).resolve_asset_graph()
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id="all", asset_graph=graph, partition_names=KEYS[:2], asset_selection=[ASSET_KEY],
        backfill_timestamp=0.0, tags={}, dynamic_partitions_store=project.instance, all_partitions=False,
        title=None, description=None, run_config=None,
    )  # fmt: skip
    project.instance.add_backfill(backfill)
    assert backfilled(project.instance, {"dagster/backfill": "all"}) == set(KEYS[:2])
    assert backfilled(project.instance, {"dagster/backfill": "none"}) == set()
    assert backfilled(project.instance, {}) == set()


def test_reading_what_two_models_made_is_refused(tmp_path: Path) -> None:
    from resources.embeddings_io import EmbeddingsIOManager

    manager = EmbeddingsIOManager(output_dir=str(tmp_path / "out"))
    facts: dict[str, Any] = {"model": "m", "weights_digest": "a", "precision": "fp32", "dim": 8}
    manager.commit(finished_shard("0"), facts)
    manager.commit(finished_shard("1"), facts)
    assert len(manager.scan().collect()) == 12
    manager.commit(finished_shard("1"), {**facts, "weights_digest": "b"})
    with pytest.raises(StorageError, match="1 has weights_digest b instead of a, which 0 has"):
        manager.scan()
    manager.commit(finished_shard("1", dim=4), {**facts, "dim": 4})
    with pytest.raises(StorageError, match="1 has dim 4 instead of 8"):
        manager.scan()
    assert isinstance(manager.scan("1"), pl.LazyFrame)


def test_the_totals_name_what_is_mixed_by_request(project: Project) -> None:
    assert project.run("00000", "00001").error == ""
    from boring_assets.commands.runs import run_range

    other = project.settings.model_copy(update={"precision": "bf16"})
    assert run_range(other, project.instance, "00002", "00002", tags={REDO_TAG: "true"}).error == ""
    totals = json.loads((Path(project.settings.output_dir) / "metadata.json").read_bytes())
    assert totals["precision"] == ["bf16", "fp32"]
    assert isinstance(project.instance, dg.DagsterInstance)
