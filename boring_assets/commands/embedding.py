"""`boring-assets embed`: from an input and an output to embeddings, all the way through Dagster."""

import fcntl
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import dagster as dg
from rich.console import Console

from boring_assets.assets.sharing import UNFINISHED
from boring_assets.commands.parallel import Share, run_in_workers
from boring_assets.commands.progress_bar import ProgressBar, count_rows
from boring_assets.commands.redoing import find_other_weights
from boring_assets.commands.report import Summary, made_by, say_done, say_left_out
from boring_assets.commands.runs import Outcome, run_range
from boring_assets.commands.sharing import ranges_left
from boring_assets.datasets import Dataset
from boring_assets.engine.results import Progress
from boring_assets.errors import RunError, SettingsError, StorageError
from boring_assets.instance.homes import HOME_TAG, home_name, open_instance
from boring_assets.jobs import ALIVE_LOCK, is_of_command_line
from boring_assets.live_runs import fail_dead_runs
from boring_assets.output.totals import refresh_totals
from boring_assets.parts import get_parts, register_shards
from boring_assets.settings import Settings
from boring_assets.shard_states import PENDING, ShardStates, State, get_shard_states
from boring_assets.storage.root import check_readable
from boring_assets.tags import ADOPT_TAG, REDO_TAG
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
    """Embeds every new, changed, failed or lost shard of the input, and says what happened.

    Args:
        settings: Input, output, model and the rest.
        redo: Also embed again what was made by other settings, or by other weights under the same name.
        only: No other partitions than these; None is all.
        console: Where to print; the terminal by default.
        progress: Counts the samples.

    Returns:
        What was done.

    Raises:
        SettingsError: A setting is wrong, or the output was made by other settings and `redo` is off.
        StorageError: The input cannot be read, holds no shards, or the output cannot be written.
        RunError: A run could not go on; what was committed before stays.
        KeyboardInterrupt: SIGINT came; what was committed before stays.
    """
    console = console or Console(highlight=False)
    found = discover_input(settings)
    embeddings = EmbeddingsIOManager.from_settings(settings)
    embeddings.check(ShardSource.from_settings(settings).root())
    instance, dataset = open_instance(settings.output_dir), Dataset.from_settings(settings)
    with alive(instance):
        fail_dead_runs(instance)
        register_shards(instance, found, settings, dataset)
        version, parts = settings.embedding_version(), get_parts(settings, dataset)
        stock = get_shard_states(instance, found, version, embeddings.committed, parts)
        if redo:
            find_other_weights(stock, settings, embeddings)
        wanted = [key for key in _choose(stock, settings, redo=redo) if only is None or key in only]
        say_left_out(console, stock, found)
        if not wanted:
            refresh_totals(embeddings.root())  # a run that was killed at its very end has not
            done = len(stock.keys((State.DONE,)))
            rest = "" if done == len(stock.shards) + len(found.growing) else " else"
            console.print(f"Nothing{rest} to do: {some(done, 'shard')} embedded already.")
            return Summary()
        shards = [stock.shards[key] for key in wanted]
        with ProgressBar(console, shards, settings.max_samples, progress) as bar:
            tags = {REDO_TAG: "true"} if redo else {}
            summary = run_shards(settings, instance, stock, wanted, bar, tags)
    say_done(console, settings, summary)
    return summary


@contextmanager
def alive(instance: dg.DagsterInstance) -> Iterator[None]:
    """Holds a lock as long as this process lives, so that the next one can tell which runs are dead.

    A run in a process that was killed never ends by itself, and its partitions would count as running.
    """
    with (Path(instance.root_directory) / ALIVE_LOCK).open("a+") as lock:
        _end_dead_runs(instance, lock)
        # A record lock: unlike flock's, it is not shared with children, so it ends with this very process.
        fcntl.lockf(lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            _end_dead_runs(instance, lock)


def _end_dead_runs(instance: dg.DagsterInstance, lock: IO[str]) -> None:
    """Ends the unfinished runs of this home's command lines, where no other one of them lives."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets a lock that is held answer either
        return
    tags = {ADOPT_TAG: "true", HOME_TAG: home_name(instance)}
    unfinished = dg.RunsFilter(statuses=UNFINISHED, tags=tags)
    for run in instance.get_runs(unfinished):
        if is_of_command_line(run):  # the daemon watches its own
            instance.report_run_failed(run, "The process of this run was ended before the run was.")


def discover_input(settings: Settings) -> Discovery:
    """Returns the input's shards.

    Raises:
        StorageError: The input cannot be read, or holds no complete shard.
    """
    source = ShardSource.from_settings(settings)
    check_readable(source.root())
    found = source.discover()
    if not found.shards:
        raise StorageError(found.explain_empty(source.root().uri))
    return found


def _choose(stock: ShardStates, settings: Settings, *, redo: bool) -> list[str]:
    """Keys to embed, in Dagster's order."""
    other = stock.keys((State.OTHER_SETTINGS,))
    if other and not redo:
        raise SettingsError(
            f"{settings.output_dir} holds {some(len(other), 'shard')} made by other settings than "
            f"{made_by(settings)}: {first_of(other)}. Add --redo to embed them again, or give "
            "the settings that they were made with, or another output."
        )
    keys = stock.keys((*PENDING, *((State.OTHER_SETTINGS,) if redo else ())))
    if not settings.max_samples:
        return keys
    chosen, rows = [], 0
    for key in keys:
        if rows >= settings.max_samples:
            break
        chosen.append(key)
        rows += count_rows(stock.shards[key])
    return chosen


def run_shards(
    settings: Settings,
    instance: dg.DagsterInstance,
    stock: ShardStates,
    wanted: list[str],
    bar: ProgressBar,
    tags: Mapping[str, str],
) -> Summary:
    """Runs the job over some partitions, and returns what was committed.

    Args:
        settings: Input, output, model and the rest.
        instance: Dagster's instance.
        stock: The state of each shard.
        wanted: Keys of the partitions, in Dagster's order.
        bar: Shows the progress.
        tags: Further tags of the runs, such as `REDO_TAG`.

    Raises:
        RunError: A run could not go on; what was committed before stays.
    """
    started = time.monotonic()
    before = instance.event_log_storage.get_maximum_record_id() or 0
    workers = 1 if settings.max_samples else min(settings.num_workers, len(wanted))
    if workers > 1:
        shares = _shares(stock, wanted, workers, settings.partitions_per_run)
        outcomes = run_in_workers(shares, bar.counts, tags)
    else:
        outcomes = list(_run_here(settings, instance, stock, wanted, bar, tags, before))
    mine = {outcome.run_id for outcome in outcomes}
    summary = _summarize(
        _events(instance, [part for part, _ in stock.parts], before, mine), time.monotonic() - started
    )
    for outcome in outcomes:
        summary.failed_shards |= outcome.failed_shards
        if outcome.stops:
            done = f" {some(summary.shards, 'shard')} committed before it." if summary.shards else ""
            raise RunError(outcome.error + done)
    return summary


def _run_here(
    settings: Settings,
    instance: dg.DagsterInstance,
    stock: ShardStates,
    wanted: list[str],
    bar: ProgressBar,
    tags: Mapping[str, str],
    since: int,
) -> Iterator[Outcome]:
    """Runs one range after another in this process, where the model stays loaded."""
    mine: set[str] = set()
    chosen, most = set(wanted), settings.partitions_per_run
    for part, order in stock.by_part():
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


def _shares(stock: ShardStates, wanted: list[str], workers: int, most: int) -> list[list[Share]]:
    """Deals shards out to workers, each a stretch of its own, as ranges."""
    cuts = [len(wanted) * number // workers for number in range(workers + 1)]
    return [
        [(part.part, one.first, one.last) for part, one in stock.ranges(wanted[start:end], most)]
        for start, end in pairwise(cuts)
    ]


def _summarize(events: Iterable[dg.AssetMaterialization], seconds: float) -> Summary:
    """Adds up what was committed."""
    summary = Summary(seconds=seconds)
    for event in events:
        metadata: dict[str, Any] = {name: value.value for name, value in event.metadata.items()}
        summary.shards += 1
        summary.rows += metadata["rows"]
        summary.embedded += metadata["embedded"]
        summary.retried += metadata.get("retried", 0)
        summary.recovered += metadata.get("recovered", 0)
        summary.failed.update(metadata.get("failed_by_reason", {}))
    return summary


def _events(
    instance: dg.DagsterInstance, parts: Iterable[Dataset], after: int, runs: set[str]
) -> Iterator[Any]:
    """The materializations of some runs; another command line may be at work beside this one."""
    for part in parts:
        filter_ = dg.AssetRecordsFilter(part.embeddings, after_storage_id=after)
        cursor, more = None, True
        while more:
            page = instance.fetch_materializations(filter_, limit=1000, cursor=cursor, ascending=True)
            for record in page.records:
                if record.asset_materialization and record.run_id in runs:
                    yield record.asset_materialization
            cursor, more = page.cursor, page.has_more
