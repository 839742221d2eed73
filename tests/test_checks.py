"""The asset checks: each planted fault trips its own check and no other, and says which partition it is."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from boring_assets.datasets import ASSET_KEY
from boring_assets.definitions import build_definitions
from boring_assets.output import measures
from boring_assets.output.judgement import CHECKS, Committed
from boring_assets.output.measures import measure_all
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.storage.root import Root
from boring_assets.tags import range_tags
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.assets.project import Project
from tests.planted_vectors import (
    BAD,
    FAULTS,
    KEYS,
    commit,
    elsewhere,
    lose_a_row,
    rewrite,
    vectors,
)
from tests.seaweed import Seaweed

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Five partitions, committed by the real IO manager; some of their rows failed."""
    write_sample_data(tmp_path / "in", len(KEYS), 8, "webdataset", image_size=32)
    settings = Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), model="boring-tiny")
    for seed, key in enumerate(KEYS):
        commit(settings, key, vectors(100, seed))
    return settings


@pytest.fixture
def project(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same with Dagster, which knows of them."""
    folders = (settings.input_dir, settings.output_dir)
    project = Project(tmp_path / "home", monkeypatch, *folders, precision="auto")
    project.register()
    for key in KEYS:
        project.instance.report_runless_asset_event(dg.AssetMaterialization(ASSET_KEY, partition=key))
    assert project.settings.embedding_version() == settings.embedding_version()
    return project


def check(project: Project) -> dict[str, dg.AssetCheckEvaluation]:
    """Runs the job of the checks as the UI's button does."""
    job = build_definitions(project.settings).resolve_job_def("check_embeddings")
    result = job.execute_in_process(instance=project.instance, run_config=QUIET)
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def find(settings: Settings) -> dict[str, dict[str, str]]:
    """What the checks find without a run around them, where they find anything."""
    committed = Committed(
        measures=measure_all(EmbeddingsIOManager.from_settings(settings).root()),
        reported=frozenset(KEYS),
        source_versions={
            shard.key: shard.version for shard in ShardSource.from_settings(settings).discover().shards
        },
        settings=settings.embedding_version(),
    )
    found = {name: check(committed).problems for name, (_, check) in CHECKS.items()}
    return {name: problems for name, problems in found.items() if problems}


@pytest.mark.parametrize(("expected", "plant"), FAULTS)
def test_each_fault_fails_exactly_its_check(
    expected: str, plant: Callable[[Settings], None], settings: Settings
) -> None:
    assert find(settings) == {}
    plant(settings)
    found = find(settings)
    assert set(found) == {expected}
    assert set(found[expected]) == {BAD}


def test_the_check_job_names_the_wrong_partition(project: Project) -> None:
    outcomes = check(project)
    assert set(outcomes) == set(CHECKS)
    assert all(one.passed for one in outcomes.values())
    assert outcomes["rows_accounted_for"].metadata["rows"].value == 5 * 104
    lose_a_row(project.settings)
    rewrite(project.settings, elsewhere)
    outcomes = check(project)
    assert {name for name, one in outcomes.items() if not one.passed} == {"rows_accounted_for", "drift"}
    for name, severity in (("rows_accounted_for", "ERROR"), ("drift", "WARN")):
        assert outcomes[name].severity.value == severity
        assert outcomes[name].metadata["bad_partitions"].value == 1
        assert outcomes[name].metadata["bad"].value.records[0].data["partition"] == BAD
        assert (outcomes[name].description or "").startswith(f"{BAD}: ")


def test_a_partition_that_was_removed_is_not_missed(project: Project, settings: Settings) -> None:
    EmbeddingsIOManager.from_settings(settings).remove(KEYS[-1])
    assert not check(project)["rows_accounted_for"].passed
    project.instance.delete_dynamic_partition("shards", KEYS[-1])
    assert check(project)["rows_accounted_for"].passed


def test_a_file_is_read_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = measures.measure

    def measure(root: Root, key: str, version: str) -> measures.Measures:
        read.append(key)
        return real(root, key, version)

    monkeypatch.setattr(measures, "measure", measure)
    assert find(settings) == {}
    assert sorted(read) == KEYS
    read.clear()
    commit(settings, BAD, vectors(100, 17))
    assert find(settings) == {}
    assert read == [BAD]


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_of_the_web_ui_checks_at_its_end(project: Project, gone: bool) -> None:
    """It holds the asset and its checks; the asset's step has no output to wait for, and may have failed."""
    if gone:
        project.register("gone")
    job = build_definitions(project.settings).resolve_implicit_global_asset_job_def()
    tags = range_tags(KEYS[0], "gone" if gone else KEYS[-1])
    result = job.execute_in_process(
        instance=project.instance,
        tags=tags,
        run_config=QUIET,
        raise_on_error=False,
        asset_selection=[ASSET_KEY],
    )
    ended = [event.step_key for event in result.all_events if event.is_step_success or event.is_step_failure]
    assert ended == ["image_embeddings", "image_embeddings_checks"]
    assert result.success is not gone
    outcomes = result.get_asset_check_evaluations()
    assert {one.check_name for one in outcomes if one.passed} == set(CHECKS)


def test_checks_have_a_history_and_can_be_selected(project: Project) -> None:
    check(project)
    lose_a_row(project.settings)
    key = dg.AssetCheckKey(ASSET_KEY, "rows_accounted_for")
    job = build_definitions(project.settings).resolve_job_def("check_embeddings")
    one = job.get_subset(asset_check_selection={key}, asset_selection=set())
    assert len(one.execute_in_process(instance=project.instance).get_asset_check_evaluations()) == 1
    history = project.instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    assert [record.event.dagster_event.asset_check_evaluation_data.passed for record in history] == [
        False,
        True,
    ]


def test_an_unreachable_input_fails_the_checks_and_not_the_run(project: Project) -> None:
    Path(project.settings.input_dir).rename(Path(project.settings.input_dir).with_name("away"))
    outcomes = check(project)
    assert not any(one.passed for one in outcomes.values())
    assert "It could not be checked" in (outcomes["stale"].description or "")


def test_small_partitions_of_one_population_do_not_drift(settings: Settings) -> None:
    for seed, key in enumerate(KEYS):
        commit(settings, key, vectors(5, 30 + seed))
    assert set(find(settings)) == {"failure_rate"}


def test_half_precision_passes(settings: Settings) -> None:
    half = settings.model_copy(update={"output_dtype": "float16"})
    for seed, key in enumerate(KEYS):
        commit(half, key, vectors(100, seed))
    assert find(half) == {}


def test_an_output_on_s3_is_checked_alike(settings: Settings, s3_env: Seaweed) -> None:
    remote = settings.model_copy(update={"output_dir": s3_env.new_prefix()})
    for seed, key in enumerate(KEYS):
        commit(remote, key, vectors(100, seed))
    assert find(remote) == {}
    root = EmbeddingsIOManager.from_settings(remote).root()
    root.fs.rm_file(f"{root.path}/image_failures/{BAD}.parquet")
    assert find(remote) == {"rows_accounted_for": {BAD: "the failures file is gone"}}
