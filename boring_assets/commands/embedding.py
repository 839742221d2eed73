"""`boring-assets embed`: embeds the shards of an input through Dagster."""

import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
import dagster as dg
from rich.console import Console

from boring_assets.commands.parallel import Share, Workers
from boring_assets.commands.report import (
    ProgressBar,
    Summary,
    count_rows,
    describe_model,
    print_left_out,
    print_summary,
)
from boring_assets.commands.runs import Outcome, run_range
from boring_assets.commands.sharing import ranges_left
from boring_assets.datasets import materializations
from boring_assets.engine.model.devices import pick_device, pick_precision
from boring_assets.engine.results import Progress
from boring_assets.engine.samples import Shard
from boring_assets.errors import RunError, SettingsError, StorageError
from boring_assets.instance.homes import open_instance
from boring_assets.live_runs import fail_dead_runs
from boring_assets.output.identity import find_other_models, identity
from boring_assets.output.totals import refresh_totals
from boring_assets.parts import describe_other_input, get_parts, register_shards
from boring_assets.settings import Settings
from boring_assets.shard_states import PENDING, ShardStates, State, get_shard_states
from boring_assets.storage.root import check_readable
from boring_assets.storage.weights import find_model_files
from boring_assets.tags import REDO_TAG
from boring_assets.wording import first_of, plain, some
from partitions.discovery import Discovery
from partitions.own_files import EMBEDDINGS
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
    with open_dataset(settings) as dataset:
        states = dataset.states
        if redo:
            _find_other_weights(dataset)
        wanted = [key for key in _choose(states, settings, redo=redo) if only is None or key in only]
        print_left_out(console, states, dataset.found)
        if not wanted:
            refresh_totals(dataset.embeddings.root())  # a run that was killed at its end has not
            done = len(states.keys((State.DONE,)))
            rest = "" if done == len(states.shards) + len(dataset.found.growing) else " else"
            console.print(f"Nothing{rest} to do: {some(done, 'shard')} embedded already.")
            return Summary()
        tags = {REDO_TAG: "true"} if redo else {}
        with ProgressBar(console, dataset.shards(wanted), settings.max_samples, progress) as bar:
            summary = run_shards(dataset, wanted, bar, tags)
    print_summary(console, settings, summary)
    return summary


@dataclass(frozen=True)
class Opened:
    """A dataset whose new shards are registered: what its input holds, and each shard's state."""

    settings: Settings
    embeddings: EmbeddingsIOManager
    instance: dg.DagsterInstance
    found: Discovery
    states: ShardStates

    def shards(self, keys: list[str]) -> list[Shard]:
        """Returns the shards of some partitions."""
        return [self.states.shards[key] for key in keys]


def warn_of_other_input(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Prints a warning if the partitions in Dagster are those of another input."""
    if warning := describe_other_input(instance, settings):
        click.secho(plain(f"Warning   {warning}"), fg="yellow", err=True)


@contextmanager
def open_dataset(settings: Settings) -> Iterator[Opened]:
    """Registers the new shards, and yields the dataset.

    Before and after, runs whose process was killed are marked as failed: they would count as running.

    Raises:
        StorageError: The input cannot be read or holds no complete shard, or the output cannot be written.
        SettingsError: The output belongs to another input.
    """
    source, embeddings = ShardSource.from_settings(settings), EmbeddingsIOManager.from_settings(settings)
    check_readable(source.root())
    found = source.discover()
    if not found.shards:
        raise StorageError(found.explain_empty(source.root().uri))
    embeddings.check(source.root())
    instance = open_instance(settings.output_dir)
    fail_dead_runs(instance)
    warn_of_other_input(instance, settings)
    register_shards(instance, found, settings)
    version, parts = settings.embedding_version(), get_parts(settings)
    states = get_shard_states(instance, found, version, embeddings.committed, parts)
    try:
        yield Opened(settings, embeddings, instance, found, states)
    finally:
        fail_dead_runs(instance)


def present_model(settings: Settings) -> dict[str, Any]:
    """Returns digest, preprocess and precision of the model for a run here; loads it on the CPU.

    Raises:
        ModelError: It cannot be loaded, or there is no such device.
        StorageError: Its files cannot be fetched.
    """
    model = find_model_files(settings.model, settings.pretrained, settings.weights_sha256).load()
    device = pick_device(settings.device.partition(",")[0])
    precision = pick_precision(settings.precision, device)
    facts = {"weights_digest": model.digest, "preprocess": vars(model.preprocess), "precision": precision}
    return {name: identity(facts)[name] for name in facts}


def _find_other_weights(dataset: Opened) -> None:
    """Marks the finished partitions that another model embedded as embedded with other settings."""
    done = dataset.states.keys((State.DONE,))
    if not done:
        return
    mine = present_model(dataset.settings)

    def same(facts: Mapping[str, Any]) -> bool:
        theirs = identity(facts)
        return all(theirs[name] == value for name, value in mine.items())

    others = find_other_models(dataset.embeddings.root(), EMBEDDINGS, done, same)
    dataset.states.states.update({key: State.OTHER_SETTINGS for key, _ in others})


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


def run_shards(dataset: Opened, wanted: list[str], bar: ProgressBar, tags: Mapping[str, str]) -> Summary:
    """Runs the job over some partitions, in Dagster's order, and returns what was committed.

    The runs get the tags too, such as `REDO_TAG`.

    Raises:
        RunError: A run failed; what was committed before stays.
    """
    settings, instance, states = dataset.settings, dataset.instance, dataset.states
    started = time.monotonic()
    before = instance.event_log_storage.get_maximum_record_id() or 0
    workers = 1 if settings.max_samples else min(settings.num_workers, len(wanted))
    shares = _shares(dataset, wanted, before, workers)
    if workers > 1:
        outcomes = Workers(shares, bar.counts, tags).run(workers)
    else:
        outcomes = list(_run_here(dataset, shares, bar, tags))
    summary = _summarize(instance, states, before, {outcome.run_id for outcome in outcomes})
    summary.seconds = time.monotonic() - started
    for outcome in outcomes:
        summary.failed_shards |= outcome.failed_shards
        if outcome.stops:
            done = f" {some(summary.shards, 'shard')} committed before it." if summary.shards else ""
            raise RunError(outcome.error + done)
    return summary


def _shares(dataset: Opened, wanted: list[str], since: int, workers: int) -> Iterator[Share]:
    """Yields the ranges to run, of each part; see `ranges_left`."""
    chosen, most = set(wanted), dataset.settings.partitions_per_run
    mine: set[str] = set()
    for part, order in dataset.states.by_part():
        for first, last in ranges_left(dataset.instance, part, order, chosen, most, since, mine, workers):
            run_id = str(uuid.uuid4())
            mine.add(run_id)
            yield part.part, first, last, run_id


def _run_here(
    dataset: Opened, shares: Iterator[Share], bar: ProgressBar, tags: Mapping[str, str]
) -> Iterator[Outcome]:
    """Runs one range after another in this process, where the model stays loaded."""
    settings, instance = dataset.settings, dataset.instance
    for part, first, last, run_id in shares:
        left = settings.max_samples - bar.done if settings.max_samples else 0
        if settings.max_samples and left <= 0:
            return
        outcome = run_range(
            settings, instance, first, last, left, part=part, tags=tags, progress=bar.counts, run_id=run_id
        )
        yield outcome
        if outcome.stops:
            return


def _summarize(instance: dg.DagsterInstance, states: ShardStates, since: int, runs: set[str]) -> Summary:
    """Adds up what some runs have committed; another command line may run beside this one."""
    summary = Summary()
    for part, _ in states.parts:
        for record, metadata in materializations(instance, part.embeddings, after=since):
            if record.run_id not in runs:
                continue
            summary.shards += 1
            summary.rows += metadata["rows"]
            summary.embedded += metadata["embedded"]
            summary.retried += metadata.get("retried", 0)
            summary.recovered += metadata.get("recovered", 0)
            summary.failed.update(metadata.get("failed_by_reason", {}))
    return summary
