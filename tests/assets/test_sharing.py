"""Two runs that were asked for the same shards at the same moment: the later one leaves them to the other."""

from pathlib import Path

import dagster as dg
import pytest

from boring_assets.commands.runs import run_range
from boring_assets.datasets import ASSET_KEY
from boring_assets.definitions import build_definitions
from boring_assets.instance.homes import open_instance
from boring_assets.jobs import EMBED_JOB
from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.tags import EMBEDS_TAG, range_tags
from resources.source import ShardSource


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    write_sample_data(tmp_path / "input", 4, 2, "parquet", image_size=16)
    return Settings(
        input_dir=str(tmp_path / "input"),
        output_dir=str(tmp_path / "output"),
        model="boring-tiny",
        device="cpu",
    )


def create_run(settings: Settings, instance: dg.DagsterInstance, first: str, last: str) -> dg.DagsterRun:
    """A run that another machine has created, and is executing."""
    job = build_definitions(settings).resolve_job_def(EMBED_JOB)
    return instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        tags=range_tags(first, last) | {EMBEDS_TAG: "image_embeddings"},
    )


def embedded(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_materialized_partitions(ASSET_KEY))


def test_shards_of_an_earlier_run_are_left_to_it(settings: Settings) -> None:
    instance = open_instance(settings.output_dir)
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    other = create_run(settings, instance, "00001", "00002")
    assert not run_range(settings, instance, "00000", "00003").error
    assert embedded(instance) == {"00000", "00003"}

    instance.report_run_failed(other, "its machine is gone")
    assert not run_range(settings, instance, "00000", "00003").error
    assert embedded(instance) == {"00000", "00001", "00002", "00003"}


def test_a_run_of_another_dataset_takes_nothing(settings: Settings) -> None:
    instance = open_instance(settings.output_dir)
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    job = build_definitions(settings).resolve_job_def(EMBED_JOB)
    tags = range_tags("00000", "00003") | {EMBEDS_TAG: "laion/image_embeddings"}
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    assert not run_range(settings, instance, "00000", "00003").error
    assert len(embedded(instance)) == 4
