"""Launches runs in processes that stay for the next run, so that a scattered backfill is not a slow one.

Dagster makes a run of each contiguous range of a backfill's selection. Its own launcher gives every run a new
process, which imports torch and loads the model again: seconds, for a shard that needs one.

dagster.yaml:

    run_launcher:
      module: boring_assets.instance.launcher
      class: WarmRunLauncher
"""

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._config import IntSource
from dagster._core.launcher import (
    CheckRunHealthResult,
    DefaultRunLauncher,
    LaunchRunContext,
    WorkerStatus,
)
from dagster._core.origin import RepositoryPythonOrigin
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._serdes import ConfigurableClassData, serialize_value

from boring_assets.instance.homes import HOME_TAG, WORKER_TAG, home_name, is_of_home
from boring_assets.instance.pool import fit_pool
from boring_assets.instance.worker import DONE, TAKEN, is_alive
from boring_assets.jobs import ALIVE_LOCK, is_of_command_line
from boring_assets.settings import load_settings

_ANSWER_SECONDS = 30.0
_LOCAL = (None, "localhost", "127.0.0.1", "::1")
_IMAGE = "DAGSTER_CURRENT_IMAGE"


class _Worker:
    """One worker process, as its launcher sees it."""

    def __init__(self, origin: RepositoryPythonOrigin, folder: Path, idle_seconds: int) -> None:
        self.origin = origin
        folder.mkdir(mode=0o700, exist_ok=True)
        name = uuid.uuid4().hex[:12]
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_ANSWER_SECONDS)
        self.lock = folder / f"{name}.lock"
        with theirs:
            python = [sys.executable, "-m", "boring_assets.instance.worker"]
            self._process = subprocess.Popen(
                [*python, str(theirs.fileno()), str(self.lock), str(idle_seconds)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # the daemon may be interrupted or restarted; its runs go on
            )
        self.id = f"{self._process.pid}-{name}"

    def take(self, request: bytes) -> bool:
        """Offers a run; False where the worker will not execute it, and ends."""
        try:
            self._socket.sendall(request)
            if self._socket.recv(len(TAKEN), socket.MSG_WAITALL) == TAKEN:
                return True
        except OSError:
            self._process.kill()  # it must not take the run later on
        self.end()
        return False

    def is_done(self) -> bool:
        """Waits for the run that was taken; False where it failed or the process died."""
        self._socket.settimeout(None)
        try:
            done = self._socket.recv(len(DONE), socket.MSG_WAITALL) == DONE
        except OSError:
            return False
        self._socket.settimeout(_ANSWER_SECONDS)
        return done

    def end(self) -> int:
        """Has an idle worker end; the process's exit status, negative for a signal."""
        self._socket.close()
        try:
            status = self._process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self.lock.unlink(missing_ok=True)
        return status


class WarmRunLauncher(DefaultRunLauncher):
    """Gives a run to an idle worker process with the same code, or to a new one.

    Workers belong to the process of this launcher, which is the daemon's: they get its environment, and end
    with it once they are idle. Runs of code locations with another Python or on another machine are launched
    as Dagster does by itself, but for those of a container with the same image, as `DAGSTER_CURRENT_IMAGE`
    names it in both: their code is here too.

    The pool gets as many slots as this machine has devices, see `boring_assets.instance.pool`.

    Args:
        idle_seconds: How long a worker waits for its next run, with the model loaded.
        linger_seconds: How long a launch waits for its run's end where the worker was warm. The queue looks
            for the next run only after the launch, so the next of many short runs follows at once.
        inst_data: Where Dagster has the configuration from.
    """

    def __init__(
        self, idle_seconds: int = 60, linger_seconds: int = 2, inst_data: ConfigurableClassData | None = None
    ) -> None:
        super().__init__(inst_data)
        self._idle_seconds, self._linger_seconds = idle_seconds, linger_seconds
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._pool_fits = False

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What dagster.yaml may say."""
        return {
            "idle_seconds": dg.Field(IntSource, default_value=60),
            "linger_seconds": dg.Field(IntSource, default_value=2),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "WarmRunLauncher":
        """Makes the launcher from dagster.yaml."""
        return cls(**config_value, inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hands a run to a worker; returns when it has begun, or a little later.

        Args:
            context: The run.
        """
        run = context.dagster_run
        if not _is_local(run):
            super().launch_run(context)
            return
        assert run.job_code_origin is not None
        if not self._pool_fits:
            fit_pool(self._instance, load_settings().device)
            self._pool_fits = True
        origin = run.job_code_origin.repository_origin
        ref = serialize_value(self._instance.get_ref())
        request = json.dumps({"run_id": run.run_id, "instance_ref": ref}).encode() + b"\n"
        worker = self._pop(origin)
        while worker and not self._offer(worker, run.run_id, request):
            worker = self._pop(origin)
        warm = worker is not None
        if worker is None:
            worker = _Worker(origin, self._folder(), self._idle_seconds)
            if not self._offer(worker, run.run_id, request):
                raise dg.DagsterError(
                    f"The process {worker.id} that should execute run {run.run_id} ended before it began; "
                    "its output is in the log of the daemon."
                )
        self._run_ids.add(run.run_id)
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(worker, run.run_id, ended), daemon=True).start()
        if warm:
            ended.wait(self._linger_seconds)

    def terminate(self, run_id: str) -> bool:
        """Asks for a run's end; its worker sees that within a second, from whatever process this was called.

        Args:
            run_id: The run.

        Returns:
            False where the run is finished.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or WORKER_TAG not in run.tags:
            return super().terminate(run_id)
        if run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if is_of_home(self._instance, run) and not self._is_alive(run):
            self._instance.report_run_canceled(run, "The run's process had ended before.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: the monitor of runs asks `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Says whether a run's process lives; right after a reboot and where its process id was given anew.

        Args:
            run: A run that has started and not ended.

        Returns:
            RUNNING or FAILED; RUNNING too for a run that Dagster's own launcher launched, which it watches,
            and for one of another home, whose locks cannot be seen from here.
        """
        here = is_of_home(self._instance, run)
        if here and is_of_command_line(run) and not is_alive(self._home() / ALIVE_LOCK):
            return CheckRunHealthResult(WorkerStatus.FAILED, "its command line has ended before it")
        if WORKER_TAG not in run.tags:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "launched without a worker")
        worker = run.tags[WORKER_TAG]
        if not here:
            return CheckRunHealthResult(
                WorkerStatus.RUNNING, "launched from another home", run_worker_id=worker
            )
        if self._is_alive(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=worker)
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"the process of worker {worker} has ended", run_worker_id=worker
        )

    def dispose(self) -> None:
        """Lets the idle workers end."""
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.end()

    def _home(self) -> Path:
        return Path(self._instance.root_directory)

    def _folder(self) -> Path:
        return self._home() / "workers"

    def _is_alive(self, run: dg.DagsterRun) -> bool:
        name = Path(run.tags[WORKER_TAG].rpartition("-")[2]).name
        return is_alive(self._folder() / f"{name}.lock")

    def _pop(self, origin: RepositoryPythonOrigin) -> _Worker | None:
        """Takes an idle worker with the same code."""
        with self._lock:
            found = next((worker for worker in self._idle if worker.origin == origin), None)
            if found:
                self._idle.remove(found)
        return found

    def _offer(self, worker: _Worker, run_id: str, request: bytes) -> bool:
        # Before the run begins: Dagster rewrites the whole run to add a tag, its status too.
        tags = {WORKER_TAG: worker.id, HOME_TAG: home_name(self._instance)}
        self._instance.add_run_tags(run_id, tags)
        return worker.take(request)

    def _watch(self, worker: _Worker, run_id: str, ended: threading.Event) -> None:
        """Waits for a run's end; has its run fail, and so be retried, where the process died first."""
        if worker.is_done():
            with self._lock:
                self._idle.append(worker)
        else:
            status = worker.end()
            run = self._instance.get_run_by_id(run_id)
            if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
                self._instance.report_run_canceled(run)
            elif run is not None and not run.is_finished:
                why = f"The run's process {worker.id} ended before the run did, with exit status {status}."
                self._instance.report_run_failed(run, why)
        ended.set()


def _is_local(run: dg.DagsterRun) -> bool:
    """Whether this process's own Python, on this machine or in this image, is one that has the run's code."""
    if run.job_code_origin is None or run.remote_job_origin is None:
        return False
    repository = run.job_code_origin.repository_origin
    location = run.remote_job_origin.repository_origin.code_location_origin
    if repository.container_image or os.environ.get(_IMAGE):
        here = repository.container_image == os.environ.get(_IMAGE)
    else:
        here = not isinstance(location, GrpcServerCodeLocationOrigin) or location.host in _LOCAL
    return here and repository.executable_path == sys.executable


class PromptRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue of runs, looked at twice a second: its own least interval makes short runs wait."""

    @property
    def dequeue_interval_seconds(self) -> float:  # type: ignore[override]
        """Seconds between two looks, if launching took less."""
        return 0.2
