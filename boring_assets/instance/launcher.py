"""Launches runs in worker processes that keep the loaded model for the next run.

Dagster starts one run for each contiguous range of a backfill. Its own launcher starts a new process for each
run, which imports torch and loads the model again: several seconds for a shard that needs one.

dagster.yaml:

    run_launcher:
      module: boring_assets.instance.launcher
      class: WarmRunLauncher
"""

import json
import os
import sys
import threading
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

from boring_assets.engine.model.devices import devices
from boring_assets.instance.homes import (
    HOME_TAG,
    WORKER_TAG,
    belongs_to_home,
    home_name,
    keep_connections_open,
)
from boring_assets.instance.pool import set_pool_limit
from boring_assets.instance.worker import Worker
from boring_assets.live_runs import has_died, is_alive
from boring_assets.settings import load_settings

_LOCAL_HOSTS = (None, "localhost", "127.0.0.1", "::1")
_IMAGE = "DAGSTER_CURRENT_IMAGE"


class WarmRunLauncher(DefaultRunLauncher):
    """Sends a run to an idle worker process with the same code, or to a new one.

    The workers are children of the daemon: they have its environment, and end with it once they are idle.
    Dagster's own launcher launches the runs of code locations with another Python or on another machine. A
    code location in a container counts as local where `DAGSTER_CURRENT_IMAGE` is the same in both containers.

    The first launch sets the limit of the pool `gpu` to the number of this machine's devices.

    Args:
        idle_seconds: How long a worker keeps the model loaded while it waits for its next run.
        linger_seconds: How long a launch waits for a run to end, once each device has one. The daemon looks
            for the next run as soon as the launch returns, and else every half second at most.
        inst_data: Set by Dagster: this section of dagster.yaml.
    """

    def __init__(
        self, idle_seconds: int = 60, linger_seconds: int = 5, inst_data: ConfigurableClassData | None = None
    ) -> None:
        super().__init__(inst_data)
        self._idle_seconds, self._linger_seconds = idle_seconds, linger_seconds
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._run_ended = threading.Condition()
        self._running = 0
        self._devices = 0  # not counted yet

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Returns the schema of this section of dagster.yaml."""
        return {
            "idle_seconds": dg.Field(IntSource, default_value=60),
            "linger_seconds": dg.Field(IntSource, default_value=5),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "WarmRunLauncher":
        """Builds the launcher from dagster.yaml."""
        return cls(**config_value, inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Sends a run to a worker; returns when the run has started, or up to `linger_seconds` later.

        Raises:
            DagsterError: The new worker process ended before it accepted the run.
        """
        run = context.dagster_run
        if not _is_local(run):
            super().launch_run(context)
            return
        assert run.job_code_origin is not None
        if not self._devices:
            self._devices = len(devices(load_settings().device))
            set_pool_limit(self._instance, self._devices)
        origin = run.job_code_origin.repository_origin
        worker = self._take_idle(origin)
        while worker and not self._send(run.run_id, worker):
            worker = self._take_idle(origin)
        was_idle = worker is not None
        if worker is None:
            worker = Worker(origin, self._folder(), self._idle_seconds)
            if not self._send(run.run_id, worker):
                raise dg.DagsterError(
                    f"The worker process {worker.id} ended before it started run {run.run_id}; "
                    "its output is in the log of the daemon."
                )
        self._run_ids.add(run.run_id)
        with self._run_ended:
            self._running += 1
        threading.Thread(target=self._watch, args=(worker, run.run_id), daemon=True).start()
        if was_idle:
            with self._run_ended:
                self._run_ended.wait_for(lambda: self._running < self._devices, self._linger_seconds)

    def terminate(self, run_id: str) -> bool:
        """Marks a run as canceling, from any process; its worker sees that within a second and stops it.

        Returns:
            False where the run has ended already.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or WORKER_TAG not in run.tags:
            return super().terminate(run_id)
        if run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if belongs_to_home(self._instance, run) and not self._is_alive(run):
            self._instance.report_run_canceled(run, "The run's process had ended already.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: Dagster's run monitoring calls `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Returns whether the process of a run is alive. Correct after a reboot and a reused process id.

        Args:
            run: A run that has started and not ended.

        Returns:
            RUNNING or FAILED; RUNNING also if this home has no lock of the run, such as for a run of another
            home.
        """
        here = belongs_to_home(self._instance, run)
        if WORKER_TAG not in run.tags:
            if here and has_died(self._instance, run.run_id):
                return CheckRunHealthResult(WorkerStatus.FAILED, "its process has ended")
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
        """Ends the idle workers."""
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.stop()

    def _folder(self) -> Path:
        return Path(self._instance.root_directory) / "workers"

    def _is_alive(self, run: dg.DagsterRun) -> bool:
        name = Path(run.tags[WORKER_TAG].rpartition("-")[2]).name
        return bool(is_alive(self._folder() / f"{name}.lock"))

    def _take_idle(self, origin: RepositoryPythonOrigin) -> Worker | None:
        """Takes an idle worker with the same code, if there is one."""
        with self._lock:
            found = next((worker for worker in self._idle if worker.origin == origin), None)
            if found:
                self._idle.remove(found)
        return found

    def _send(self, run_id: str, worker: Worker) -> bool:
        # Tagged before the run starts: to add a tag, Dagster rewrites the whole run with its status.
        tags = {WORKER_TAG: worker.id, HOME_TAG: home_name(self._instance)}
        self._instance.add_run_tags(run_id, tags)
        request = {"run_id": run_id, "instance_ref": serialize_value(self._instance.get_ref())}
        return worker.send(json.dumps(request).encode() + b"\n")

    def _watch(self, worker: Worker, run_id: str) -> None:
        try:
            self._wait(worker, run_id)
        finally:
            with self._run_ended:
                self._running -= 1
                self._run_ended.notify_all()

    def _wait(self, worker: Worker, run_id: str) -> None:
        """Waits until a run has ended; reports it as failed, so it is retried, where its process died."""
        if worker.wait():
            with self._lock:
                self._idle.append(worker)
        else:
            status = worker.stop()
            run = self._instance.get_run_by_id(run_id)
            if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
                self._instance.report_run_canceled(run)
            elif run is not None and not run.is_finished:
                message = (
                    f"The run's process {worker.id} ended before the run did, with exit status {status}."
                )
                self._instance.report_run_failed(run, message)


def _is_local(run: dg.DagsterRun) -> bool:
    """Returns whether this Python, on this machine or in this image, has the run's code."""
    if run.job_code_origin is None or run.remote_job_origin is None:
        return False
    repository = run.job_code_origin.repository_origin
    location = run.remote_job_origin.repository_origin.code_location_origin
    if repository.container_image or os.environ.get(_IMAGE):
        here = repository.container_image == os.environ.get(_IMAGE)
    else:
        here = not isinstance(location, GrpcServerCodeLocationOrigin) or location.host in _LOCAL_HOSTS
    return here and repository.executable_path == sys.executable


class PromptRunCoordinator(QueuedRunCoordinator):
    """Dagster's run queue with a shorter interval, and with connections to PostgreSQL that stay open."""

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Called by Dagster when the daemon starts."""
        super().register_instance(instance)
        keep_connections_open(instance)

    @property
    def dequeue_interval_seconds(self) -> float:  # type: ignore[override]
        """Seconds between two checks of the queue; Dagster's minimum of 1 delays short runs."""
        return 0.2
