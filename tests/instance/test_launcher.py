"""Runs of a small job through the launcher, in real worker processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster import DagsterRunStatus
from dagster._core.code_pointer import FileCodePointer
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from boring_assets.instance.homes import HOME_TAG, WORKER_TAG
from boring_assets.instance.launcher import WarmRunLauncher
from boring_assets.live_runs import is_alive
from boring_assets.tags import range_tags
from tests.waiting import HANG_SECONDS, wait_for

CODE = """
import os, time
import dagster as dg

@dg.op(config_schema={"does": str})
def work(context):
    does = context.op_config["does"]
    context.log.info("version 1")
    if does == "fail":
        raise ValueError("as asked")
    if does == "die":
        os._exit(3)
    if does == "wait":
        time.sleep(3600)

@dg.job(executor_def=dg.in_process_executor)
def small():
    work()

defs = dg.Definitions(jobs=[small])
"""


class Project:
    """A code location of one file, and an instance that launches its runs."""

    def __init__(self, root: Path, idle_seconds: int) -> None:
        self.home, self.file = root / "home", root / "code.py"
        self.file.write_text(CODE)
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(
            "run_launcher:\n  module: boring_assets.instance.launcher\n  class: WarmRunLauncher\n"
            f"  config:\n    idle_seconds: {idle_seconds}\ntelemetry:\n  enabled: false\n"
        )
        self.instance = dg.DagsterInstance.from_config(str(self.home))
        assert isinstance(self.instance.run_launcher, WarmRunLauncher)
        self.launcher = self.instance.run_launcher

    def launch(self, does: str = "nothing", python: str = sys.executable) -> str:
        pointer = FileCodePointer(str(self.file), "defs", str(self.file.parent))
        target = LoadableTargetOrigin(executable_path=python, python_file=str(self.file))
        location = ManagedGrpcPythonEnvCodeLocationOrigin(target, "here")
        repository = RepositoryPythonOrigin(python, pointer, None, None, None)
        namespace: dict = {}
        exec(compile(self.file.read_text(), "code", "exec"), namespace)
        run = self.instance.create_run_for_job(
            namespace["defs"].resolve_job_def("small"),
            run_config={"ops": {"work": {"config": {"does": does}}}},
            status=DagsterRunStatus.STARTING,
            job_code_origin=JobPythonOrigin("small", repository),
            remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "small"),
        )
        self.launcher.launch_run(LaunchRunContext(run, workspace=None))
        return run.run_id

    def run(self, run_id: str) -> dg.DagsterRun:
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run

    def finish(self, run_id: str) -> dg.DagsterRun:
        wait_for(lambda: self.run(run_id).is_finished, "the run is finished", lambda: self.run(run_id))
        return self.run(run_id)

    def do(self, does: str = "nothing") -> dg.DagsterRun:
        """Launches a run and waits until its worker, if it stays, can take the next one."""
        run = self.finish(self.launch(does))
        if run.is_success:
            wait_for(lambda: self.launcher._idle, "the worker is idle")
        return run

    def messages(self, run: dg.DagsterRun) -> str:
        return "\n".join(log.message for log in self.instance.all_logs(run.run_id))

    def pid(self, run: dg.DagsterRun) -> int:
        return int(run.tags[WORKER_TAG].partition("-")[0])


@contextmanager
def running_project(root: Path, idle_seconds: int) -> Iterator[Project]:
    project = Project(root, idle_seconds)
    yield project
    for child in psutil.Process().children(recursive=True):
        if is_running(child) and "boring_assets.instance.worker" in child.cmdline():
            child.kill()
    project.instance.dispose()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One for all tests, which take over each other's workers; these stay, however slow the machine is."""
    with running_project(tmp_path_factory.mktemp("project"), idle_seconds=3600) as project:
        yield project


def test_one_worker_does_run_after_run_and_does_not_grow(project: Project) -> None:
    runs = [project.do() for _ in range(3)]
    process = psutil.Process(project.pid(runs[0]))
    before = process.memory_info().rss
    runs += [project.do() for _ in range(15)]
    assert process.memory_info().rss - before < 15 * 2**20
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    assert len({run.tags[WORKER_TAG] for run in runs}) == 1
    assert len({process.pid} | {project.pid(run) for run in runs}) == 1


def test_an_idle_worker_ends_after_its_time_and_the_next_run_gets_a_new_one(tmp_path: Path) -> None:
    with running_project(tmp_path, idle_seconds=1) as project:
        first = project.finish(project.launch())
        process = psutil.Process(project.pid(first))
        wait_for(lambda: not is_running(process), "the idle worker has ended")
        second = project.finish(project.launch())
        assert second.status is DagsterRunStatus.SUCCESS
        assert second.tags[WORKER_TAG] != first.tags[WORKER_TAG]


def test_changed_code_is_never_run_from_memory(project: Project) -> None:
    first = project.do()
    project.file.write_text(CODE.replace("version 1", "version 2"))
    second = project.do()
    assert "version 1" in project.messages(first)
    assert "version 2" in project.messages(second)
    assert first.tags[WORKER_TAG] != second.tags[WORKER_TAG]


def test_a_worker_ends_after_a_failed_run(project: Project) -> None:
    done = project.do()
    failed = project.do("fail")
    assert failed.tags[WORKER_TAG] == done.tags[WORKER_TAG]
    assert failed.status is DagsterRunStatus.FAILURE
    assert "as asked" in str([log.dagster_event for log in project.instance.all_logs(failed.run_id)])
    after = project.do()
    assert after.status is DagsterRunStatus.SUCCESS
    assert after.tags[WORKER_TAG] != done.tags[WORKER_TAG]


def test_a_worker_that_dies_fails_only_its_own_run(project: Project) -> None:
    waiting = project.launch("wait")
    died = project.finish(project.launch("die"))
    assert died.status is DagsterRunStatus.FAILURE
    assert "ended before the run did, with exit status 3" in project.messages(died)
    wait_for(lambda: project.run(waiting).status is DagsterRunStatus.STARTED, "the other run has started")
    other = project.run(waiting)
    assert project.launcher.check_run_worker_health(other).status is WorkerStatus.RUNNING
    os.kill(project.pid(other), signal.SIGKILL)
    assert "with exit status -9" in project.messages(project.finish(waiting))


def test_a_run_is_canceled_from_another_process(project: Project) -> None:
    run_id = project.launch("wait")
    wait_for(lambda: "version" in project.messages(project.run(run_id)), "the op has begun")
    code = (
        "import dagster, sys; instance = dagster.DagsterInstance.from_config(sys.argv[1]);"
        "assert instance.run_launcher.terminate(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(project.home), run_id], check=True, timeout=HANG_SECONDS)
    assert project.finish(run_id).status is DagsterRunStatus.CANCELED
    assert project.launcher.terminate(run_id) is False


def test_the_health_of_a_run_is_that_of_its_own_process(project: Project) -> None:
    done = project.do()
    health = project.launcher.check_run_worker_health

    def after(tag: str) -> WorkerStatus:
        return health(done.with_tags({WORKER_TAG: tag})).status

    assert health(done).status is WorkerStatus.RUNNING
    pid, _, name = done.tags[WORKER_TAG].partition("-")
    # After a reboot: a process with the same id may live, and the lock file may lie there.
    (project.home / "workers" / "0123456789ab.lock").touch()
    assert after(f"{pid}-0123456789ab") is WorkerStatus.FAILED
    assert after(f"{pid}-ba9876543210") is WorkerStatus.FAILED
    assert after(f"{os.getpid()}-{name}") is WorkerStatus.RUNNING
    assert health(done.with_tags({})).status is WorkerStatus.RUNNING
    other_home = done.with_tags({WORKER_TAG: "1-ba9876543210", HOME_TAG: "0123456789ab"})
    assert health(other_home).status is WorkerStatus.RUNNING
    os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: not is_alive(project.home / "workers" / f"{name}.lock"), "the lock is free")
    assert health(done).status is WorkerStatus.FAILED


def test_another_python_is_left_to_dagsters_own_launcher(project: Project) -> None:
    with pytest.raises(dg.DagsterInvariantViolationError, match="DefaultRunLauncher requires a workspace"):
        project.launch(python="/other/python")


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


HOLD = """
import sys, time, types
from boring_assets.live_runs import mark_alive
with mark_alive(types.SimpleNamespace(root_directory=sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(3600)
"""


def test_a_run_whose_command_line_was_killed_is_seen(project: Project) -> None:
    """It has no worker, and nobody may start another command line for days."""
    run = project.instance.create_run_for_job(
        _empty_job(), tags=range_tags("a", "b"), status=DagsterRunStatus.STARTED
    )
    command = [sys.executable, "-c", HOLD, str(project.home), run.run_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as command_line:
        assert command_line.stdout is not None
        command_line.stdout.readline()
        assert project.launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        command_line.kill()
    assert project.launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def _empty_job() -> dg.JobDefinition:
    @dg.job(name="embed_shards")
    def nothing() -> None:
        pass

    return nothing
