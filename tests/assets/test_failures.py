"""How often a run is retried that its machine was taken away from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from boring_assets.assets.failures import allow_more_retries
from boring_assets.instance.homes import open_instance
from boring_assets.tags import MAX_RETRIES_TAG


@dg.job
def embed() -> None: ...


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    instance = open_instance(str(tmp_path / "output"))
    assert instance.run_retries_max_retries == 5
    return instance


def lost(instance: dg.DagsterInstance, parent: dg.DagsterRun | None = None, **tags: str) -> dg.DagsterRun:
    """A run whose process has ended; or a retry of another one, with the tags that Dagster gives it."""
    if parent is None:
        return instance.create_run_for_job(embed, status=dg.DagsterRunStatus.STARTED, tags=tags)
    root = parent.root_run_id or parent.run_id
    own = {"dagster/root_run_id": root, "dagster/parent_run_id": parent.run_id}
    inherited = {name: value for name, value in parent.tags.items() if name != "dagster/will_retry"}
    return instance.create_run_for_job(
        embed,
        status=dg.DagsterRunStatus.STARTED,
        root_run_id=root,
        parent_run_id=parent.run_id,
        tags=inherited | own | tags,
    )


def embeds_a_shard(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    context: Any = SimpleNamespace(instance=instance, run=run)
    allow_more_retries(context)
    return _now(instance, run)


def is_retried(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    instance.report_run_failed(run, "killed")
    return _now(instance, run).tags["dagster/will_retry"] == "true"


def _now(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    found = instance.get_run_by_id(run.run_id)
    assert found
    return found


def test_attempts_that_embed_a_shard_are_not_counted(instance: dg.DagsterInstance) -> None:
    run = embeds_a_shard(instance, lost(instance))
    for _ in range(12):
        assert is_retried(instance, run)
        run = embeds_a_shard(instance, lost(instance, run))


def test_attempts_without_progress_end(instance: dg.DagsterInstance) -> None:
    run = embeds_a_shard(instance, lost(instance, lost(instance)))
    for _ in range(5):
        assert is_retried(instance, run)
        run = lost(instance, _now(instance, run))
    assert not is_retried(instance, run)


def test_a_limit_of_the_user_stays(instance: dg.DagsterInstance) -> None:
    first = lost(instance, **{MAX_RETRIES_TAG: "1"})
    assert is_retried(instance, embeds_a_shard(instance, first))
    assert not is_retried(instance, embeds_a_shard(instance, lost(instance, first)))
