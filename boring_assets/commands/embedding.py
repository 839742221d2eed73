"""`boring-assets embed`: embeds the shards of an input through Dagster."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import dagster as dg
from rich.console import Console

from boring_assets.commands.parallel import Share, run_in_workers
from boring_assets.commands.progress_bar import ProgressBar, count_rows
from boring_assets.commands.redoing import find_other_weights
from boring_assets.commands.report import Summary, describe_model, print_left_out, print_summary
from boring_assets.commands.runs import Outcome, run_range
from boring_assets.commands.sharing import ranges_left
from boring_assets.datasets import materializations
from boring_assets.engine.results import Progress
from boring_assets.errors import RunError, SettingsError, StorageError
from boring_assets.instance.homes import open_instance
from boring_assets.live_runs import fail_dead_runs
from boring_assets.output.totals import refresh_totals
from boring_assets.parts import get_parts, register_shards
from boring_assets.settings import Settings
from boring_assets.shard_states import PENDING, ShardStates, State, get_shard_states
from boring_assets.storage.root import check_readable
from boring_assets.tags import REDO_TAG
from boring_assets.wording import first_of, some
from partitions.discovery import Discovery
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def embed_all(
    settings: Settings,
    *,
    redo: bool = False,
    only: Collection[str] | None = None,
    console: Console | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Embeds every new, changed, failed or lost shard of the input; prints and returns what was done.

    Args:
        settings: Input, output, model and the rest.
        redo: Also embed shards again that were embedded with other settings, or with other weights.
        only: Keys of partitions; None is all.
        console: Where to print; the terminal by default.
        progress: Counts the samples.

    Raises:
        SettingsError: A setting is wrong, or the output was embedded with other settings and `redo` is off.
        StorageError: The input cannot be read, holds no shards, or the output cannot be written.
        RunError: A run failed; what was committed before stays.
        KeyboardInterrupt: The command was interrupted; what was committed before stays.
    """
    console = console or Console(highlight=False)
    embeddings = EmbeddingsIOManager.from_settings(settings)
    with open_dataset(settings, embeddings) as (instance, found, states):
        if redo:
            find_other_weights(states, settings, embeddings)
        wanted = [key for key in _choose(states, settings, redo=redo) if only is None or key in only]
        print_left_out(console, states, found)
        if not wanted:
            refresh_totals(embeddings.root())  # a run that was killed at its end has not
            done = len(states.keys((State.DONE,)))
            rest = "" if done == len(states.shards) + len(found.growing) else " else"
            console.print(f"Nothing{rest} to do: {some(done, 'shard')} embedded already.")
            return Summary()
        shards = [states.shards[key] for key in wanted]
        with ProgressBar(console, shards, settings.max_samples, progress) as bar:
            tags = {REDO_TAG: "true"} if redo else {}
            summary = run_shards(settings, instance, states, wanted, bar, tags)
    print_summary(console, settings, summary)
    return summary


@contextmanager
def open_dataset(
    settings: Settings, embeddings: EmbeddingsIOManager
) -> Iterator[tuple[dg.DagsterInstance, Discovery, ShardStates]]:
    """Registers the new shards; yields Dagster's instance, what the input holds, and each shard's state.

    Before and after, runs whose process was killed are marked as failed: they would count as running.

    Raises:
        StorageError: The input cannot be read or holds no complete shard, or the output cannot be written.
        SettingsError: The output belongs to another input.
    """
    source = ShardSource.from_settings(settings)
    check_readable(source.root())
    found = source.discover()
    if not found.shards:
        raise StorageError(found.explain_empty(source.root().uri))
    embeddings.check(source.root())
    instance = open_instance(settings.output_dir)
    fail_dead_runs(instance)
    register_shards(instance, found, settings)
    version, parts = settings.embedding_version(), get_parts(settings)
    try:
        yield instance, found, get_shard_states(instance, found, version, embeddings.committed, parts)
    finally:
        fail_dead_runs(instance)


def _choose(states: ShardStates, settings: Settings, *, redo: bool) -> list[str]:
    """Keys to embed, in Dagster's order."""
    other = states.keys((State.OTHER_SETTINGS,))
    if other and not redo:
        raise SettingsError(
            f"{settings.output_dir} holds {some(len(other), 'shard')} embedded with other settings than "
            f"{describe_model(settings)}: {first_of(other)}. Add --redo to embed them again, or give "
            "the settings that they were embedded with, or another output."
        )
    keys = states.keys((*PENDING, *((State.OTHER_SETTINGS,) if redo else ())))
    if not settings.max_samples:
        return keys
    chosen, rows = [], 0
    for key in keys:
        if rows >= settings.max_samples:
            break
        chosen.append(key)
        rows += count_rows(states.shards[key])
    return chosen


def run_shards(
    settings: Settings,
    instance: dg.DagsterInstance,
    states: ShardStates,
    wanted: list[str],
    bar: ProgressBar,
    tags: Mapping[str, str],
) -> Summary:
    """Runs the job over some partitions, and returns what was committed.

    Args:
        settings: Input, output, model and the rest.
        instance: Dagster's instance.
        states: The state of each shard.
        wanted: Keys of the partitions, in Dagster's order.
        bar: Shows the progress.
        tags: Further tags of the runs, such as `REDO_TAG`.

    Raises:
        RunError: A run failed; what was committed before stays.
    """
    started = time.monotonic()
    before = instance.event_log_storage.get_maximum_record_id() or 0
    workers = 1 if settings.max_samples else min(settings.num_workers, len(wanted))
    if workers > 1:
        shares = _shares(states, wanted, workers, settings.partitions_per_run)
        outcomes = run_in_workers(shares, bar.counts, tags)
    else:
        outcomes = list(_run_here(settings, instance, states, wanted, bar, tags, before))
    summary = _summarize(instance, states, before, {outcome.run_id for outcome in outcomes})
    summary.seconds = time.monotonic() - started
    for outcome in outcomes:
        summary.failed_shards |= outcome.failed_shards
        if outcome.stops:
            done = f" {some(summary.shards, 'shard')} committed before it." if summary.shards else ""
            raise RunError(outcome.error + done)
    return summary


def _run_here(
    settings: Settings,
    instance: dg.DagsterInstance,
    states: ShardStates,
    wanted: list[str],
    bar: ProgressBar,
    tags: Mapping[str, str],
    since: int,
) -> Iterator[Outcome]:
    """Runs one range after another in this process, where the model stays loaded."""
    mine: set[str] = set()
    chosen, most = set(wanted), settings.partitions_per_run
    for part, order in states.by_part():
        for first, last in ranges_left(instance, part, order, chosen, most, since, mine):
            left = settings.max_samples - bar.done if settings.max_samples else 0
            if settings.max_samples and left <= 0:
                return
            outcome = run_range(
                settings, instance, first, last, left, part=part.part, tags=tags, progress=bar.counts
            )
            mine.add(outcome.run_id)
            yield outcome
            if outcome.stops:
                return


def _shares(states: ShardStates, wanted: list[str], workers: int, most: int) -> list[list[Share]]:
    """Divides shards among workers, as ranges."""
    cuts = [len(wanted) * number // workers for number in range(workers + 1)]
    return [
        [(part.part, one.first, one.last) for part, one in states.ranges(wanted[start:end], most)]
        for start, end in pairwise(cuts)
    ]


def _summarize(instance: dg.DagsterInstance, states: ShardStates, since: int, runs: set[str]) -> Summary:
    """Adds up what some runs have committed; another command line may run beside this one."""
    summary = Summary()
    for part, _ in states.parts:
        for record in materializations(instance, part.embeddings, after=since):
            event = record.asset_materialization
            if event is None or record.run_id not in runs:
                continue
            metadata: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
            summary.shards += 1
            summary.rows += metadata["rows"]
            summary.embedded += metadata["embedded"]
            summary.retried += metadata.get("retried", 0)
            summary.recovered += metadata.get("recovered", 0)
            summary.failed.update(metadata.get("failed_by_reason", {}))
    return summary
