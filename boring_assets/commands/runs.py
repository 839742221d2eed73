"""Dagster runs in this process, for the command line: the instance, and the job over ranges of shards."""

import fcntl
import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.instance import InstanceRef

from boring_assets.assets.image_embeddings import FAILED_SHARDS
from boring_assets.catalogue import MAX_SAMPLES_TAG, REDO_TAG
from boring_assets.definitions import build_definitions
from boring_assets.errors import SettingsError
from boring_assets.instance.homes import HOME_TAG, home_name
from boring_assets.jobs import embed_job, range_tags
from boring_assets.settings import Settings

_NO_COMPUTE_LOGS = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
_PROJECT = Path(__file__).parents[2]


def open_instance(output_dir: str) -> dg.DagsterInstance:
    """Dagster's instance in `DAGSTER_HOME`, made where it is missing.

    Args:
        output_dir: The output's URI; without `DAGSTER_HOME`, each output has a home of its own below
            `~/.boring_assets`, so that the partitions of two datasets never mix.

    Returns:
        The instance; `DAGSTER_HOME` is set for this process and its children.

    Raises:
        SettingsError: The home cannot be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or _default_home(output_dir)).expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Two processes that set up one new home at once can collide in its database.
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            config, shipped = home / "dagster.yaml", _PROJECT / "dagster.yaml"
            if not config.exists() and shipped.exists():
                shutil.copyfile(shipped, config)
            os.environ["DAGSTER_HOME"] = str(home)
            # Dagster's copy of what a process prints would route the terminal through a file, and its
            # helper processes print tracebacks on Ctrl-C.
            ref = InstanceRef.from_dir(str(home), overrides={"compute_logs": _NO_COMPUTE_LOGS})
            instance = dg.DagsterInstance.from_ref(ref)
            instance.get_dynamic_partitions("")
            return instance
    except OSError as error:
        raise SettingsError(
            f"DAGSTER_HOME {home} cannot be used ({error}). Set it to a folder that you may write."
        ) from error


def _default_home(output_dir: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", output_dir.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "output"
    full = output_dir if "://" in output_dir else str(Path(output_dir).expanduser().resolve())
    return f"~/.boring_assets/{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        error: Why it failed; empty where it succeeded.
        failed_shards: Why each shard failed that did, where the run itself went on.
        run_id: Dagster's id of the run.
    """

    error: str = ""
    failed_shards: dict[str, str] = field(default_factory=dict)
    run_id: str = ""

    @property
    def stops(self) -> bool:
        """Whether it failed for a reason that further runs would meet too."""
        return bool(self.error) and not self.failed_shards


def run_range(
    settings: Settings,
    instance: dg.DagsterInstance,
    first: str,
    last: str,
    max_samples: int = 0,
    *,
    redo: bool = False,
) -> Outcome:
    """Runs the job over one range of partitions, in this process.

    Args:
        settings: What the resources are made with.
        instance: Dagster's instance.
        first: First partition key, in Dagster's order.
        last: Last partition key.
        max_samples: Most samples of the run; 0 is all.
        redo: Take over nothing that is committed, and leave beside it what other settings made.

    Returns:
        How it ended.

    Raises:
        KeyboardInterrupt: SIGINT came in the middle of it.
    """
    tags = range_tags(first, last) | {HOME_TAG: home_name(instance)}
    tags |= {MAX_SAMPLES_TAG: str(max_samples)} if max_samples else {}
    tags |= {REDO_TAG: "true"} if redo else {}
    return run_job(settings, instance, embed_job.name, tags)


def run_job(
    settings: Settings,
    instance: dg.DagsterInstance,
    name: str,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> Outcome:
    """Runs a job in this process.

    Args:
        settings: What the resources are made with.
        instance: Dagster's instance.
        name: The job's.
        tags: The run's.
        config: The run's, besides its logging.

    Returns:
        How it ended.

    Raises:
        KeyboardInterrupt: SIGINT came in the middle of it.
    """
    job = build_definitions(settings).resolve_job_def(name)
    # The command line says what happened; Dagster's own log is in the UI.
    silence = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    quiet = silence if settings.log_format == "text" else {}
    result = job.execute_in_process(
        instance=instance, tags=tags, run_config=quiet | (config or {}), raise_on_error=False
    )
    return Outcome(run_id=result.run_id) if result.success else _explain(result)


def _explain(result: dg.ExecuteInProcessResult) -> Outcome:
    """The reason that the asset gave, or else the exception that it raised."""
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        said = data.user_failure_data
        if said is not None:
            failed = said.metadata.get(FAILED_SHARDS)
            shards: Any = failed.value if failed else {}
            return Outcome(said.description or "", shards, result.run_id)
        if data.error and data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
            raise KeyboardInterrupt
        return Outcome(data.error.message if data.error else "the step failed", run_id=result.run_id)
    return Outcome(f"run {result.run_id} failed before its step; the Dagster UI has its log")
