"""The index as an asset: its event, its errors, and when Dagster would run it by itself."""

import sys
from pathlib import Path

import dagster as dg
import pytest

from boring_assets.commands.runs import run_job
from boring_assets.definitions import build_definitions
from tests.assets.project import Project, metadata_of
from tests.search.conftest import HELD_OUT
from tests.search.dataset import jpeg, write_shard


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in "ab":
        write_shard(tmp_path / "in" / f"{name}.parquet", ["x"] * 3, [jpeg(each, 1) for each in HELD_OUT[:3]])
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out")
    project.register()
    return project


def indexed(project: Project) -> list[dict]:
    records = project.instance.fetch_materializations(dg.AssetKey("embedding_index"), limit=10).records
    return [metadata_of(record.asset_materialization) for record in records if record.asset_materialization]


def test_the_materialization_has_the_counts(project: Project) -> None:
    failed = run_job(project.settings, project.instance, "update_index")
    assert "Nothing is embedded" in failed.error
    assert not project.run("a").error
    for shards, rows in ((1, 3), (0, 3)):
        assert not run_job(project.settings, project.instance, "update_index").error
        event = indexed(project)[0]
        assert (event["shards_added"], event["dagster/row_count"]) == (shards, rows)
        assert event["output_uri"] == f"file://{project.settings.output_dir}/embedding_index"


def test_without_lancedb_the_asset_loads_and_names_the_extra(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    assert not project.run("a").error
    assert "boring_assets[search]" in run_job(project.settings, project.instance, "update_index").error


def test_the_automation_requests_one_run_after_embedding(project: Project) -> None:
    definitions = build_definitions(project.settings)

    def requested(cursor: object = None) -> dg.EvaluateAutomationConditionsResult:
        return dg.evaluate_automation_conditions(defs=definitions, instance=project.instance, cursor=cursor)

    result = requested()
    assert result.total_requested == 0
    assert not project.run("a").error
    result = requested(result.cursor)
    assert result.get_requested_partitions(dg.AssetKey("embedding_index")) == {None}
    assert not run_job(project.settings, project.instance, "update_index").error
    result = requested(result.cursor)
    assert result.total_requested == 0
    assert not project.run("b").error
    assert requested(result.cursor).total_requested == 1


def test_shards_embedded_during_an_index_run_are_indexed_by_the_next(project: Project) -> None:
    definitions = build_definitions(project.settings)
    result = dg.evaluate_automation_conditions(defs=definitions, instance=project.instance)
    assert not project.run("a").error

    def requested() -> int:
        nonlocal result
        result = dg.evaluate_automation_conditions(
            defs=definitions, instance=project.instance, cursor=result.cursor
        )
        return result.total_requested

    assert requested() == 1
    # The run that was asked for has listed the output, and reports when this shard is there too.
    assert not project.run("b").error
    project.instance.report_runless_asset_event(dg.AssetMaterialization("embedding_index"))
    assert requested() == 1
    assert requested() == 0


def test_shards_embedded_before_the_sensor_was_on_are_indexed(project: Project) -> None:
    assert not project.run("a").error
    definitions = build_definitions(project.settings)
    result = dg.evaluate_automation_conditions(defs=definitions, instance=project.instance)
    assert result.get_requested_partitions(dg.AssetKey("embedding_index")) == {None}
    result = dg.evaluate_automation_conditions(
        defs=definitions, instance=project.instance, cursor=result.cursor
    )
    assert result.total_requested == 0, "it was asked for once"
