"""A run that has the device does short runs along that wait for it, and leaves what it cannot finish."""

import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import BACKFILL_ID_TAG

from boring_assets.assets.waiting_runs import CARRIER_TAG
from boring_assets.catalogue import RANGE_END_TAG, RANGE_START_TAG
from boring_assets.definitions import build_definitions
from boring_assets.jobs import embed_job
from boring_assets.sample_data import write_sample_data
from tests.assets.project import Project

NEW, QUEUED, SUCCESS = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.SUCCESS,
)


def create(project: Project, first: str, last: str, backfill: str, status: dg.DagsterRunStatus) -> str:
    """Creates a run as the daemon does for a range of a backfill."""
    pointer = ModuleCodePointer("boring_assets.definitions", "defs")
    repository = RepositoryPythonOrigin(sys.executable, pointer, None, None, None)
    location = GrpcServerCodeLocationOrigin("localhost", 4000, None, "boring_assets")
    run = project.instance.create_run_for_job(
        build_definitions(project.settings).resolve_job_def(embed_job.name),
        status=status,
        tags={RANGE_START_TAG: first, RANGE_END_TAG: last, BACKFILL_ID_TAG: backfill},
        job_code_origin=JobPythonOrigin(embed_job.name, repository),
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), embed_job.name),
    )
    return run.run_id


def execute(project: Project, run_id: str) -> None:
    """Executes a run as a worker does that the queue gave it to."""
    starting = dg.DagsterEvent(dg.DagsterEventType.PIPELINE_STARTING.value, embed_job.name)
    project.instance.report_dagster_event(starting, run_id)
    run = project.instance.get_run_by_id(run_id)
    assert run
    job = InMemoryJob(build_definitions(project.settings).resolve_job_def(embed_job.name))
    execute_run(job, run, project.instance)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    paths = write_sample_data(tmp_path / "in", 12, 4, "webdataset", image_size=32)
    paths[6].write_bytes(paths[6].read_bytes()[:-100])
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out")
    project.register()
    return project


def test_what_waits_is_done_along_or_left_as_it_was(project: Project) -> None:
    first = create(project, "00000", "00000", "one", NEW)
    along = create(project, "00002", "00003", "one", QUEUED)
    broken = create(project, "00005", "00006", "one", QUEUED)
    other = create(project, "00008", "00008", "another", QUEUED)
    shared = create(project, "00003", "00004", "one", QUEUED)
    execute(project, first)

    def run(run_id: str) -> dg.DagsterRun:
        found = project.instance.get_run_by_id(run_id)
        assert found
        return found

    assert [run(run_id).status for run_id in (first, along)] == [SUCCESS, SUCCESS]
    assert {run(run_id).status for run_id in (broken, other, shared)} == {QUEUED}
    assert run(along).tags[CARRIER_TAG] == first
    events = {str(event.partition): event for event in project.events()}
    assert list(events) == ["00000", "00002", "00003"]
    logs = project.instance.all_logs(along, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert [log.asset_materialization for log in logs] == [events["00002"], events["00003"]]
    record = project.instance.get_run_record_by_id(along)
    assert record
    assert record.start_time
    assert record.end_time
    assert not project.path("00008").exists()

    # The one with a damaged shard fails by itself, as a run of its own, and names it.
    execute(project, broken)
    assert run(broken).status is dg.DagsterRunStatus.FAILURE
    assert run(shared).status is SUCCESS
    assert {str(event.partition) for event in project.events()} == {*events, "00004", "00005"}


def test_with_several_devices_each_run_is_its_own(project: Project) -> None:
    project.instance.event_log_storage.set_concurrency_slots("gpu", 2)
    first = create(project, "00000", "00000", "one", NEW)
    waiting = create(project, "00002", "00002", "one", QUEUED)
    execute(project, first)
    run = project.instance.get_run_by_id(waiting)
    assert run
    assert run.status is QUEUED
    assert [event.partition for event in project.events()] == ["00000"]
