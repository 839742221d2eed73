"""The asset checks: each planted fault trips its own check and no other, and says which partition it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.catalogue import ASSET_KEY
from boring_assets.definitions import build_definitions, build_embeddings, build_source
from boring_assets.engine.schema import METADATA_KEY
from boring_assets.jobs import range_tags
from boring_assets.judgement import CHECKS, Committed
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from partitions.root import Root
from resources import measures
from resources.measures import measure_all
from tests.assets.project import Project, finished_shard
from tests.seaweed import Seaweed

BAD = "00003"
KEYS = ["00000", "00001", "00002", BAD, "00004"]
DIM = 16
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def vectors(count: int, seed: int, towards: int = 0) -> np.ndarray:
    """Unit vectors around one axis."""
    found = np.random.default_rng(seed).normal(size=(count, DIM)) + 3 * np.eye(DIM)[towards]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Five partitions, committed by the real IO manager; some of their rows failed."""
    write_sample_data(tmp_path / "in", len(KEYS), 8, "webdataset", image_size=32)
    settings = Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out"), model="boring-tiny")
    for seed, key in enumerate(KEYS):
        commit(settings, key, vectors(100, seed))
    return settings


def commit(settings: Settings, key: str, embeddings: np.ndarray, /, **changes: Any) -> None:
    shard = build_source(settings).find([key])[key]
    version = settings.embedding_version()
    facts = {
        "dim": DIM,
        "weights_digest": "w",
        "settings": version,
        "model": "m",
        "pretrained": "",
        "precision": "fp32",
    }
    result = finished_shard(key, embedded=len(embeddings), failed=4)
    result = replace(result, shard=shard, embeddings=embeddings)
    build_embeddings(settings).commit(result, facts | changes)


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


def path(settings: Settings, kind: str = "image_embeddings") -> Path:
    return Path(settings.output_dir) / kind / f"{BAD}.parquet"


def rewrite(settings: Settings, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other vectors in the file, all else as it was."""
    table = pq.read_table(path(settings))
    changed = change(np.stack(table["embedding"].to_numpy()))
    column = pa.FixedSizeListArray.from_arrays(pa.array(changed.reshape(-1)), changed.shape[1])
    at = table.column_names.index("embedding")
    pq.write_table(table.set_column(at, "embedding", column), path(settings))


def facts_changed(settings: Settings, old: bytes, new: bytes) -> None:
    table = pq.read_table(path(settings))
    facts = table.schema.metadata[METADATA_KEY]
    assert old in facts
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: facts.replace(old, new)}), path(settings))


def lose_a_row(settings: Settings) -> None:
    pq.write_table(pq.read_table(path(settings)).slice(1), path(settings))


def lose_a_failure(settings: Settings) -> None:
    failures = pq.read_table(path(settings, "image_failures"))
    pq.write_table(failures.slice(1), path(settings, "image_failures"))


def name_a_failure_twice(settings: Settings) -> None:
    failures = pq.read_table(path(settings, "image_failures"))
    twice = pa.concat_tables([failures.slice(1), failures.slice(1, 1)])
    pq.write_table(twice, path(settings, "image_failures"))


def lose_the_failures_file(settings: Settings) -> None:
    path(settings, "image_failures").unlink()


def lose_the_file(settings: Settings) -> None:
    path(settings).unlink()


def cut_the_file(settings: Settings) -> None:
    path(settings).write_bytes(path(settings).read_bytes()[:-100])


def fail_many(settings: Settings) -> None:
    commit(settings, BAD, vectors(20, 3))


def one_nan(embeddings: np.ndarray) -> np.ndarray:
    embeddings[7, 3] = np.nan
    return embeddings


def one_long(embeddings: np.ndarray) -> np.ndarray:
    embeddings[7] *= 1.01
    return embeddings


def shorter(embeddings: np.ndarray) -> np.ndarray:
    return embeddings[:, :8] / np.linalg.norm(embeddings[:, :8], axis=1, keepdims=True)


def all_equal(embeddings: np.ndarray) -> np.ndarray:
    return np.repeat(embeddings[:1], len(embeddings), axis=0)


def nearly_equal(embeddings: np.ndarray) -> np.ndarray:
    close = embeddings[:1] + embeddings / 1000
    return close / np.linalg.norm(close, axis=1, keepdims=True)


def most_equal(embeddings: np.ndarray) -> np.ndarray:
    embeddings[:60] = embeddings[0]
    return embeddings


def elsewhere(embeddings: np.ndarray) -> np.ndarray:
    return vectors(len(embeddings), 99, towards=5)


def repeat_a_key(settings: Settings) -> None:
    table = pq.read_table(path(settings))
    keys = table["key"].to_pylist()
    at = table.column_names.index("key")
    pq.write_table(table.set_column(at, "key", pa.array([keys[1], *keys[1:]])), path(settings))


def commit_another_shard_twice(settings: Settings) -> None:
    commit(settings, BAD, vectors(100, 0))


def change_the_source(settings: Settings) -> None:
    shard = Path(settings.input_dir) / f"{BAD}.parquet"
    pq.write_table(pq.read_table(shard).slice(1), shard)


FAULTS = [
    ("rows_accounted_for", lose_a_row),
    ("rows_accounted_for", lose_a_failure),
    ("rows_accounted_for", name_a_failure_twice),
    ("rows_accounted_for", lose_the_failures_file),
    ("rows_accounted_for", lose_the_file),
    ("rows_accounted_for", cut_the_file),
    ("rows_accounted_for", lambda settings: facts_changed(settings, b'"rows": 104', b'"rows": 105')),
    ("failure_rate", fail_many),
    ("unit_norm", lambda settings: rewrite(settings, one_nan)),
    ("unit_norm", lambda settings: rewrite(settings, one_long)),
    ("dimension", lambda settings: rewrite(settings, shorter)),
    ("dimension", lambda settings: facts_changed(settings, b'"dim": 16', b'"dim": 17')),
    ("collapsed", lambda settings: rewrite(settings, all_equal)),
    ("collapsed", lambda settings: rewrite(settings, nearly_equal)),
    ("collapsed", lambda settings: rewrite(settings, most_equal)),
    ("drift", lambda settings: rewrite(settings, elsewhere)),
    ("duplicates", repeat_a_key),
    ("duplicates", commit_another_shard_twice),
    ("stale", change_the_source),
    ("stale", lambda settings: commit(settings, BAD, vectors(100, 3), settings="another model")),
    ("stale", lambda settings: commit(settings, BAD, vectors(100, 3), weights_digest="x")),
]


def find(settings: Settings) -> dict[str, dict[str, str]]:
    """What the checks find without a run around them, where they find anything."""
    committed = Committed(
        measures=measure_all(build_embeddings(settings).root()),
        reported=frozenset(KEYS),
        source_versions={shard.key: shard.version for shard in build_source(settings).discover().shards},
        settings=settings.embedding_version(),
    )
    found = {name: check(committed).problems for name, (_, check) in CHECKS.items()}
    return {name: problems for name, problems in found.items() if problems}


@pytest.mark.parametrize(("expected", "plant"), FAULTS)
def test_each_fault_trips_its_check_and_only_it(
    expected: str, plant: Callable[[Settings], None], settings: Settings
) -> None:
    assert find(settings) == {}
    plant(settings)
    found = find(settings)
    assert set(found) == {expected}
    assert set(found[expected]) == {BAD}


def test_the_job_says_which_partition_is_wrong(project: Project) -> None:
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
        instance=project.instance, tags=tags, run_config=QUIET, raise_on_error=False
    )
    ended = [event.step_key for event in result.all_events if event.is_step_success or event.is_step_failure]
    assert ended == ["image_embeddings", "image_embeddings_checks"]
    assert result.success is not gone
    outcomes = result.get_asset_check_evaluations()
    assert {one.check_name for one in outcomes if one.passed} == set(CHECKS)


def test_history_is_kept_and_only_some_can_be_asked_for(project: Project) -> None:
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


def test_an_input_that_is_away_fails_the_checks_and_not_the_run(project: Project) -> None:
    Path(project.settings.input_dir).rename(Path(project.settings.input_dir).with_name("away"))
    outcomes = check(project)
    assert not any(one.passed for one in outcomes.values())
    assert "It could not be checked" in (outcomes["stale"].description or "")


def test_small_partitions_of_one_kind_do_not_drift(settings: Settings) -> None:
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
    root = build_embeddings(remote).root()
    root.fs.rm_file(f"{root.path}/image_failures/{BAD}.parquet")
    assert find(remote) == {"rows_accounted_for": {BAD: "the failures file is gone"}}
