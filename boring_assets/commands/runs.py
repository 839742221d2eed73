"""Dagster runs in this process, for the command line."""

import os
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import click
import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.definitions import build_definitions
from boring_assets.engine.results import Progress
from boring_assets.errors import ERROR_NAMES, RunError, StorageError, without_class_name
from boring_assets.instance.homes import HOME_TAG, home_name, open_instance
from boring_assets.jobs import EMBED_JOB
from boring_assets.live_runs import fail_unfinished, mark_alive
from boring_assets.output.identity import choose_model
from boring_assets.output.state import read_json
from boring_assets.parts import get_parts, register_keys
from boring_assets.secrets import without_secrets
from boring_assets.settings import Settings
from boring_assets.shard_states import ranges
from boring_assets.tags import EMBEDS_TAG, FAILED_SHARDS, MAX_SAMPLES_TAG, range_tags
from boring_assets.wording import plain, some
from resources.embeddings_io import EmbeddingsIOManager


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    error: str = ""  # why it failed; empty where it succeeded
    failed_shards: dict[str, str] = field(default_factory=dict)  # why, if the run continued without them
    run_id: str = ""

    @property
    def stops(self) -> bool:
        """Whether it failed for a reason that would also fail further runs."""
        return bool(self.error) and not self.failed_shards


def run_range(
    settings: Settings,
    instance: dg.DagsterInstance,
    first: str,
    last: str,
    max_samples: int = 0,
    *,
    part: str = "",
    tags: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    run_id: str | None = None,
) -> Outcome:
    """Runs the embedding job over one range of partitions in this process; returns how the run ended.

    The range goes from one partition key to another, in Dagster's order, within a part of a split dataset.
    The run takes at most `max_samples` samples; 0 is all. It gets the tags too, such as `REDO_TAG`, and a new
    id where none is given.

    Raises:
        KeyboardInterrupt: The run was interrupted.
    """
    dataset = replace(Dataset.from_settings(settings), part=part)
    asset = dataset.embeddings.to_user_string()
    every = range_tags(first, last) | {HOME_TAG: home_name(instance), EMBEDS_TAG: asset} | dict(tags or {})
    every |= {MAX_SAMPLES_TAG: str(max_samples)} if max_samples else {}
    name = dataset.local_name(EMBED_JOB)
    return run_job(settings, instance, name, every, progress=progress, run_id=run_id)


def run_job(
    settings: Settings,
    instance: dg.DagsterInstance,
    name: str,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    progress: Progress | None = None,
    run_id: str | None = None,
) -> Outcome:
    """Runs a job in this process; returns how the run ended.

    Raises:
        KeyboardInterrupt: The run was interrupted.
    """
    job = build_definitions(settings, progress).resolve_job_def(name)
    # The command prints what happened; Dagster's log is in the UI.
    silence = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    quiet = silence if settings.log_format == "text" else {}
    run_config, run_id = quiet | (config or {}), run_id or str(uuid.uuid4())
    with mark_alive(instance, run_id):
        try:
            result = job.execute_in_process(
                run_config, instance, raise_on_error=False, run_id=run_id, tags=tags
            )
        except BaseException:  # Ctrl-C outside of a step
            fail_unfinished(instance, run_id)
            raise
    return Outcome(run_id=result.run_id) if result.success else explain(result)


def explain(result: dg.ExecuteInProcessResult) -> Outcome:
    """Returns how a failed run ended: the asset's reason, or else the exception.

    Raises:
        KeyboardInterrupt: The run was interrupted.
    """
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        failure = data.user_failure_data
        if failure is not None:
            failed = failure.metadata.get(FAILED_SHARDS)
            shards: Any = failed.value if failed else {}
            return Outcome(without_class_name(failure.description or ""), shards, result.run_id)
        if data.error and data.error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
            raise KeyboardInterrupt
        return Outcome(_cause(data.error, result.run_id), run_id=result.run_id)
    return Outcome(f"The run failed before its step. {_where(result.run_id)}", run_id=result.run_id)


def _cause(error: Any, run_id: str) -> str:
    """Returns the project's own error, or else the innermost cause and where its trace is."""
    text = "The step failed without an error."
    while error:
        text = without_secrets(" ".join(error.message.split()))
        if error.cls_name in ERROR_NAMES:
            return without_class_name(text.removeprefix("boring_assets.errors."))
        error = error.cause
    return f"Run {run_id} failed: {text.rstrip('.')}. {_where(run_id)}"


def _where(run_id: str) -> str:
    home = shlex.quote(os.environ["DAGSTER_HOME"])
    return (
        f"The whole trace is in Dagster: DAGSTER_HOME={home} dagster dev -m boring_assets.definitions, then "
        f"http://127.0.0.1:3000/runs/{run_id}"
    )


def run_to_the_end(
    settings: Settings, name: str, tags: dict[str, str] | None = None, config: dict[str, Any] | None = None
) -> dict[str, str]:
    """Runs a job in this process; returns the shards that failed, if the run continued without them.

    Raises:
        RunError: The run stopped.
    """
    outcome = run_job(settings, open_instance(settings.output_dir), name, tags, config)
    if outcome.stops:
        raise RunError(outcome.error)
    return outcome.failed_shards


def run_for_all(settings: Settings, job: str, verb: str, folder: str) -> dict[str, str]:
    """Runs a job over all committed partitions; prints the result, and returns why shards failed.

    Raises:
        StorageError: Nothing is embedded yet, or the output cannot be read.
        RunError: The run stopped.
    """
    instance, embeddings = open_instance(settings.output_dir), EmbeddingsIOManager.from_settings(settings)
    committed = embeddings.committed()
    if not committed:
        raise StorageError(
            f"Nothing is embedded below {settings.output_dir} yet. Run `boring-assets embed` first."
        )
    totals = read_json(embeddings.root(), "metadata.json")
    if all(isinstance(totals.get(name), str) for name in ("model", "pretrained")):  # else there are several
        settings = settings.model_copy(update=choose_model(settings, totals))
    # The shards may have been embedded with another DAGSTER_HOME.
    register_keys(instance, sorted(committed), settings)
    failed: dict[str, str] = {}
    for part in get_parts(settings):
        for first, last, _ in ranges(part.keys(instance), committed, settings.partitions_per_run):
            failed |= run_to_the_end(settings, part.local_name(job), range_tags(first, last))
    count = len(committed) - len(failed)
    click.echo(f"{some(count, 'shard')} {verb}: {settings.output_dir.rstrip('/')}/{folder}/*.parquet")
    for key, why in failed.items():
        click.secho(plain(f"Failed    {key}: {why}"), fg="red", err=True)
    return failed
