"""Launches runs as jobs of a Ray cluster, by dagster-ray's launcher; needs the extra `ray`.

Nothing else imports this module: Dagster does, where dagster.yaml names it, as deploy/ray/dagster.yaml does:

    run_launcher:
      module: boring_assets.instance.ray_launcher
      class: ClusterRunLauncher
      config:
        ray:
          address: http://head.example.internal:8265
          num_gpus: 1
          num_cpus: 4
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, ResumeRunContext, WorkerStatus
from pydantic import SecretStr

from boring_assets.errors import SettingsError
from boring_assets.instance.homes import is_of_home
from boring_assets.instance.pool import set_pool
from boring_assets.instance.worker import is_alive
from boring_assets.jobs import ALIVE_LOCK, is_of_command_line
from boring_assets.settings import PREFIX, Settings
from boring_assets.tags import POOL

try:
    import ray  # noqa: F401 - dagster-ray imports it only when a run is launched
    from dagster_ray import RayRunLauncher
    from dagster_ray.configs import USER_DEFINED_RAY_KEY
    from dagster_ray.core.run_launcher import RayLauncherConfig
except ImportError as error:
    raise ImportError(
        'Runs on Ray need Ray and dagster-ray. Install them: pip install "boring_assets[ray]".'
    ) from error

_REQUEST = ("num_cpus", "num_gpus", "memory", "resources")
_FIT_SECONDS = 10.0
_MOST_NODES = 10_000


class ClusterRunLauncher(RayRunLauncher):
    """dagster-ray's launcher of runs, with what this project's runs need besides.

    - Only runs of the pool `gpu` ask for the resources of dagster.yaml. Others ask for nothing, so they never
      wait for a GPU, and Ray executes them on its head node. What a run's tag `dagster-ray/config` says holds
      for either, a 0 too.
    - The pool has as many slots as the cluster has room for such runs, unless somebody has set its limit:
      a run beyond them would wait in Ray, where Dagster takes it for one that does not start.
    - A run gets the settings of this process, that is its `BORING_` variables but for those that may hold a
      secret, and nothing else of its environment: Ray shows a job's variables to whoever may look at it.
    - While the cluster does not answer, runs stay in the queue, and those under way are not judged.

    Args:
        config: Fields of dagster-ray's `RayRunLauncher`.
    """

    def __init__(self, **config: Any) -> None:
        self._request = {name: config.pop(name, None) for name in _REQUEST}
        self._fitted = -_FIT_SECONDS
        super().__init__(**config)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submits a run to the cluster.

        Args:
            context: The run.

        Raises:
            DagsterUserCodeUnreachableError: The cluster does not answer; the queue tries again later.
            SettingsError: The run's tag `dagster-ray/config` names a field that there is not.
            ValidationError: A field of that tag has a value of another type.
        """
        try:
            self._fit_pool()
        except ConnectionError as error:
            # The one error on which Dagster's queue keeps a run, see `max_user_code_failure_retries`.
            raise DagsterUserCodeUnreachableError(str(error)) from error
        run = self._with_request(context.dagster_run)
        super().launch_run(LaunchRunContext(run, context.workspace))

    def resume_run(self, context: ResumeRunContext) -> None:
        """Submits a run again whose job has ended before it; where `max_resume_run_attempts` allows that.

        Args:
            context: The run.
        """
        run = self._with_request(context.dagster_run)
        super().resume_run(ResumeRunContext(run, context.workspace, context.resume_attempt_number))

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Says whether a run's job lives, by Ray's word; for a command line's run, by its lock.

        Args:
            run: A run that has started and not ended.

        Returns:
            FAILED where the job has ended or Ray knows none. RUNNING too for a command line of another home,
            whose lock cannot be seen from here, and where Ray's answer is an error of its own.

        Raises:
            ConnectionError: The cluster does not answer.
        """
        if is_of_command_line(run):
            alive = is_alive(Path(self._instance.root_directory) / ALIVE_LOCK)
            if alive or not is_of_home(self._instance, run):
                return CheckRunHealthResult(WorkerStatus.RUNNING, "executed by a command line")
            return CheckRunHealthResult(WorkerStatus.FAILED, "its command line has ended before it")
        if time.monotonic() - self._fitted > _FIT_SECONDS:
            self._fit_pool()  # a node may be new, or lost, and then this run's retry must wait for another
        health = super().check_run_worker_health(run)
        if health.status is WorkerStatus.UNKNOWN and "status code 404" not in (health.msg or ""):
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"Ray does not say: {health.msg}")
        return health

    def _with_request(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """The run with all that it asks of Ray in its tag, from which dagster-ray takes it."""
        said = _said(run)
        config = (self._request if POOL in _pools(run) else {}) | said
        config["env_vars"] = [
            *_settings(config.get("num_cpus")),
            *(self.env_vars or ()),
            *(said.get("env_vars") or ()),
        ]
        return run.with_tags({**run.tags, USER_DEFINED_RAY_KEY: json.dumps(config)})

    def _fit_pool(self) -> None:
        from ray.util.state import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource
        from ray.util.state.exception import RayStateApiException

        client = StateApiClient(self.address, self.cookies, dict(self.headers or {}))
        alive = ListApiOptions(limit=_MOST_NODES, filters=[("state", "=", "ALIVE")])
        try:
            nodes: Any = client.list(StateResource.NODES, alive, raise_on_missing_output=False)
        except RayStateApiException as error:
            raise ConnectionError(f"The Ray cluster at {self.address} does not answer: {error}") from error
        # An empty cluster may be one that grows when it is asked.
        set_pool(self._instance, max(1, room((node.resources_total for node in nodes), self._request)))
        self._fitted = time.monotonic()


def room(nodes: Iterable[Mapping[str, float]], request: Mapping[str, Any]) -> int:
    """How many runs with the same request fit into a cluster at once.

    Args:
        nodes: Each node's resources, by Ray's names for them; memory in bytes.
        request: What a run asks for, by the names of dagster.yaml; None is nothing.

    Returns:
        The number of runs; 1 where they ask for nothing.
    """
    asked = dict(request.get("resources") or {})
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    asked |= {name: request[field] for name, field in names.items() if request.get(field)}
    if not asked:
        return 1
    return sum(min(int(node.get(name, 0) / amount) for name, amount in asked.items()) for node in nodes)


def _pools(run: dg.DagsterRun) -> set[str]:
    return set((run.run_op_concurrency and run.run_op_concurrency.all_pools) or ())


def _said(run: dg.DagsterRun) -> dict[str, Any]:
    """What the run's own tag asks for; dagster-ray would pass over a name that it does not know."""
    RayLauncherConfig.from_tags(run.tags)
    said: dict[str, Any] = json.loads(run.tags.get(USER_DEFINED_RAY_KEY, "{}"))
    if unknown := sorted(said.keys() - RayLauncherConfig.model_fields.keys()):
        raise SettingsError(
            f"The run's tag {USER_DEFINED_RAY_KEY} names {', '.join(unknown)}; expected are "
            f"{', '.join((*_REQUEST, 'env_vars', 'runtime_env'))}. Correct the tag, and launch the run again."
        )
    return said


def _settings(cores: float | None) -> list[str]:
    """This process's settings as `NAME=value`; a run that asks for cores decodes with so many."""
    public = [name for name, field in Settings.model_fields.items() if field.annotation is not SecretStr]
    names = [f"{PREFIX}{name.upper()}" for name in (*public, "config")]
    share = {f"{PREFIX}DECODE_WORKERS": str(max(1, int(cores)))} if cores else {}
    given = share | {name: os.environ[name] for name in names if name in os.environ}
    return [f"{name}={value}" for name, value in given.items()]
