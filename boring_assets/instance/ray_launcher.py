"""Launches runs as jobs of a Ray cluster with dagster-ray's launcher; needs the extra `ray`.

Dagster imports this module where dagster.yaml names it, as in deploy/ray/dagster.yaml:

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
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, ResumeRunContext, WorkerStatus
from pydantic import SecretStr

from boring_assets.errors import SettingsError
from boring_assets.instance.homes import belongs_to_home
from boring_assets.instance.pool import set_pool_limit
from boring_assets.jobs import is_of_command_line
from boring_assets.live_runs import has_died
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
_POOL_SECONDS = 10.0
_MAX_NODES = 10_000


class ClusterRunLauncher(RayRunLauncher):
    """dagster-ray's run launcher, with the following additions.

    - Only runs in the pool `gpu` request the resources of dagster.yaml. Other runs request nothing, so they
      never wait for a GPU; Ray executes them on its head node. The tag `dagster-ray/config` overrides both.
    - The pool's limit is the number of runs that fit into the cluster, unless a user has set it. A run beyond
      that would wait inside Ray, where Dagster reports it as one that does not start.
    - A run gets this process's settings (its `BORING_` variables without those that may hold a secret) and
      nothing else of its environment, because Ray shows a job's variables to everybody who can see the job.
    - While the cluster does not answer, runs stay in the queue and running ones are not marked as failed.

    Args:
        config: Fields of dagster-ray's `RayRunLauncher`.
    """

    def __init__(self, **config: Any) -> None:
        self._request = {name: config.pop(name, None) for name in _REQUEST}
        self._pool_updated = -_POOL_SECONDS
        super().__init__(**config)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submits a run to the cluster.

        Raises:
            DagsterUserCodeUnreachableError: The cluster does not answer; the run stays in the queue.
            SettingsError: The run's tag `dagster-ray/config` has an unknown field.
            ValidationError: A field of that tag has a value of the wrong type.
        """
        try:
            self._update_pool()
        except ConnectionError as error:
            # Dagster's queue keeps a run only on this error, see `max_user_code_failure_retries`.
            raise DagsterUserCodeUnreachableError(str(error)) from error
        run = self._with_request(context.dagster_run)
        super().launch_run(LaunchRunContext(run, context.workspace))

    def resume_run(self, context: ResumeRunContext) -> None:
        """Submits a run again whose job ended early, as often as `max_resume_run_attempts` says."""
        run = self._with_request(context.dagster_run)
        super().resume_run(ResumeRunContext(run, context.workspace, context.resume_attempt_number))

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Returns whether a run's job is alive; for a run of `boring-assets embed`, whether its lock is held.

        Args:
            run: A run that has started and not ended.

        Returns:
            FAILED if the job has ended or is unknown to Ray. RUNNING also for a command line of another home,
            whose lock cannot be read here, and if Ray answers with a server error.

        Raises:
            ConnectionError: The cluster does not answer.
        """
        if is_of_command_line(run):
            if belongs_to_home(self._instance, run) and has_died(self._instance, run.run_id):
                return CheckRunHealthResult(WorkerStatus.FAILED, "its command line has ended")
            return CheckRunHealthResult(WorkerStatus.RUNNING, "executed by a command line")
        if time.monotonic() - self._pool_updated > _POOL_SECONDS:
            self._update_pool()  # a node may have joined or been lost
        health = super().check_run_worker_health(run)
        if health.status is WorkerStatus.UNKNOWN and "status code 404" not in (health.msg or ""):
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"Ray answered with an error: {health.msg}")
        return health

    def _with_request(self, run: dg.DagsterRun) -> dg.DagsterRun:
        """Returns the run with its whole Ray request in the tag that dagster-ray reads."""
        override = _override(run)
        config = (self._request if POOL in _pools(run) else {}) | override
        config["env_vars"] = [
            *_settings(config.get("num_cpus")),
            *(self.env_vars or ()),
            *(override.get("env_vars") or ()),
        ]
        return run.with_tags({**run.tags, USER_DEFINED_RAY_KEY: json.dumps(config)})

    def _update_pool(self) -> None:
        from ray.util.state import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource
        from ray.util.state.exception import RayStateApiException

        client = StateApiClient(self.address, self.cookies, dict(self.headers or {}))
        alive = ListApiOptions(limit=_MAX_NODES, filters=[("state", "=", "ALIVE")])
        try:
            nodes: Any = client.list(StateResource.NODES, alive, raise_on_missing_output=False)
        except RayStateApiException as error:
            raise ConnectionError(f"The Ray cluster at {self.address} does not answer: {error}") from error
        # An empty cluster may scale up on the first request.
        set_pool_limit(
            self._instance, max(1, concurrent_runs((node.resources_total for node in nodes), self._request))
        )
        self._pool_updated = time.monotonic()


def concurrent_runs(nodes: Iterable[Mapping[str, float]], request: Mapping[str, Any]) -> int:
    """Returns how many runs with the same request fit into a cluster at once; 1 for an empty request.

    Args:
        nodes: Each node's resources, by Ray's names for them; memory in bytes.
        request: What a run requests, by the names of dagster.yaml; None is nothing.
    """
    amounts = dict(request.get("resources") or {})
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    amounts |= {name: request[field] for name, field in names.items() if request.get(field)}
    if not amounts:
        return 1
    return sum(min(int(node.get(name, 0) / amount) for name, amount in amounts.items()) for node in nodes)


def _pools(run: dg.DagsterRun) -> set[str]:
    return set((run.run_op_concurrency and run.run_op_concurrency.all_pools) or ())


def _override(run: dg.DagsterRun) -> dict[str, Any]:
    """Returns the request in the run's own tag; unknown fields are errors, which dagster-ray would ignore."""
    RayLauncherConfig.from_tags(run.tags)
    override: dict[str, Any] = json.loads(run.tags.get(USER_DEFINED_RAY_KEY, "{}"))
    if unknown := sorted(override.keys() - RayLauncherConfig.model_fields.keys()):
        raise SettingsError(
            f"The run's tag {USER_DEFINED_RAY_KEY} names {', '.join(unknown)}; expected: "
            f"{', '.join((*_REQUEST, 'env_vars', 'runtime_env'))}. Correct the tag, and launch the run again."
        )
    return override


def _settings(cores: float | None) -> list[str]:
    """Returns this process's settings as `NAME=value`; requested cores become the decode workers."""
    public = [name for name, field in Settings.model_fields.items() if field.annotation is not SecretStr]
    names = [f"{PREFIX}{name.upper()}" for name in (*public, "config")]
    workers = {f"{PREFIX}DECODE_WORKERS": str(max(1, int(cores)))} if cores else {}
    values = workers | {name: os.environ[name] for name in names if name in os.environ}
    return [f"{name}={value}" for name, value in values.items()]
