"""`boring-assets embed`: from an input and an output to embeddings, all the way through Dagster."""

import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import dagster as dg
from rich.console import Console

from boring_assets.catalogue import ASSET_KEY, PENDING, Catalogue, State, ranges, register, take_stock
from boring_assets.definitions import build_embeddings, build_source
from boring_assets.engine.samples import Reason
from boring_assets.errors import RunError, SettingsError, StorageError
from boring_assets.parallel import run_in_workers
from boring_assets.progress_bar import ProgressBar, count_rows
from boring_assets.runs import Outcome, open_instance, run_range
from boring_assets.settings import Settings
from partitions.discovery import Discovery
from partitions.root import check_readable

_TICK_SECONDS = 0.25


@dataclass
class Summary:
    """What one `embed` call did.

    Attributes:
        shards: Shards committed.
        failed_shards: Keys of the shards that failed, and why.
        rows: Their samples.
        embedded: Samples embedded.
        failed: Samples failed, by reason.
        seconds: From the first run's start to the last one's end.
    """

    shards: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    embedded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def embed_all(settings: Settings, *, redo: bool = False, console: Console | None = None) -> Summary:
    """Embeds every new, changed or failed shard of the input, and says what happened.

    Args:
        settings: Input, output, model and the rest.
        redo: Also embed again what was made by other settings.
        console: Where to print; the terminal by default.

    Returns:
        What was done.

    Raises:
        SettingsError: A setting is wrong, or the output was made by other settings and `redo` is off.
        StorageError: The input cannot be read, holds no shards, or the output cannot be written.
    """
    console = console or Console(highlight=False)
    found = _discover(settings)
    build_embeddings(settings).check()
    instance = open_instance(settings.output_dir)
    register(instance, found)
    stock = take_stock(instance, found, settings.embedding_version(), build_embeddings(settings).committed)
    wanted = _choose(stock, settings, redo=redo)
    _say_left_out(console, stock, found)
    if not wanted:
        console.print(f"Nothing to do: all {len(stock.keys((State.DONE,)))} shards are embedded.")
        return Summary()
    summary = _run(settings, instance, stock, wanted, console)
    _report(console, settings, summary)
    return summary


def _discover(settings: Settings) -> Discovery:
    source = build_source(settings)
    check_readable(source.root())
    found = source.discover()
    if not found.shards:
        wait = f" {len(found.growing)} are still being written: wait, or set --quiet-seconds 0."
        raise StorageError(
            f"There are no complete shards below {source.root().uri}.{wait if found.growing else ''} "
            "Expected parquet files, with a tar or folder beside each, an image column, or URLs."
        )
    return found


def _choose(stock: Catalogue, settings: Settings, *, redo: bool) -> list[str]:
    """Keys to embed, in Dagster's order."""
    other = stock.keys((State.OTHER_SETTINGS,))
    if other and not redo:
        raise SettingsError(
            f"{len(other)} shards of {settings.output_dir} were made by other settings than "
            f"{settings.embedding_version()} (first: {other[0]}). Add --redo to embed them again, or "
            "give another output."
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


def _say_left_out(console: Console, stock: Catalogue, found: Discovery) -> None:
    for path, why in found.refused.items():
        console.print(f"[yellow]Left out:[/] {path}: {why}")
    if growing := [key for key, state in stock.states.items() if state is State.GROWING]:
        console.print(
            f"[yellow]Left out:[/] {len(growing)} shards are still being written: {', '.join(growing[:5])}"
        )
    if running := stock.keys((State.RUNNING,)):
        console.print(
            f"[yellow]Left out:[/] {len(running)} shards are in a run now: {', '.join(running[:5])}"
        )


def _run(
    settings: Settings, instance: dg.DagsterInstance, stock: Catalogue, wanted: list[str], console: Console
) -> Summary:
    started = time.monotonic()
    before = instance.event_log_storage.get_maximum_record_id() or 0
    with ProgressBar(console, [stock.shards[key] for key in wanted], settings.max_samples) as bar:
        workers = 1 if settings.max_samples else min(settings.num_workers, len(wanted))
        if workers > 1:
            outcomes = run_in_workers(_shares(stock.order, wanted, workers, settings.partitions_per_run))
        else:
            outcomes = list(_run_here(settings, instance, stock, wanted, bar))
    summary = _summarize(instance, before, time.monotonic() - started)
    for outcome in outcomes:
        summary.failed_shards |= outcome.failed_shards
        if outcome.stops:
            done = f" {summary.shards} shards were committed before it." if summary.shards else ""
            raise RunError(f"{outcome.error}{done}")
    return summary


def _run_here(
    settings: Settings, instance: dg.DagsterInstance, stock: Catalogue, wanted: list[str], bar: ProgressBar
) -> Iterator[Outcome]:
    """Runs one range after another in this process, where the model stays loaded."""
    for first, last, _ in ranges(stock.order, wanted, settings.partitions_per_run):
        left = settings.max_samples - bar.done if settings.max_samples else 0
        if settings.max_samples and left <= 0:
            return
        outcome = run_range(settings, instance, first, last, left)
        yield outcome
        if outcome.stops:
            return


def _shares(order: list[str], wanted: list[str], workers: int, most: int) -> list[list[tuple[str, str]]]:
    """Deals shards out to workers, each a stretch of its own, as ranges."""
    cuts = [len(wanted) * number // workers for number in range(workers + 1)]
    parts = [wanted[start:end] for start, end in pairwise(cuts)]
    return [[(first, last) for first, last, _ in ranges(order, part, most)] for part in parts]


def _summarize(instance: dg.DagsterInstance, after: int, seconds: float) -> Summary:
    """Adds up the events of this call."""
    summary = Summary(seconds=seconds)
    for event in _events(instance, after):
        metadata = {name: value.value for name, value in event.metadata.items()}
        summary.shards += 1
        summary.rows += metadata["rows"]
        summary.embedded += metadata["embedded"]
        summary.failed.update(
            {reason: metadata[f"failed_{reason}"] for reason in Reason if f"failed_{reason}" in metadata}
        )
    return summary


def _events(instance: dg.DagsterInstance, after: int) -> Any:
    filter_ = dg.AssetRecordsFilter(ASSET_KEY, after_storage_id=after)
    cursor = None
    while True:
        page = instance.fetch_materializations(filter_, limit=1000, cursor=cursor, ascending=True)
        for record in page.records:
            if record.asset_materialization:
                yield record.asset_materialization
        if not page.has_more:
            return
        cursor = page.cursor


def _report(console: Console, settings: Settings, summary: Summary) -> None:
    """What happened, where it lies, and what to type next."""
    failed = sum(summary.failed.values())
    rate = summary.rows / summary.seconds if summary.seconds else 0.0
    console.print(
        f"Shards    {summary.shards} embedded"
        + (f", {len(summary.failed_shards)} failed" if summary.failed_shards else "")
    )
    console.print(f"Images    {summary.rows:,}: {summary.embedded:,} embedded, {failed:,} failed")
    for reason, count in summary.failed.most_common():
        console.print(f"          {count:>6,}  {reason}")
    console.print(
        f"Speed     {rate:,.0f} images a second over {summary.seconds:.1f} s, loading the model included"
    )
    console.print(f"Output    {settings.output_dir}/image_embeddings/*.parquet", soft_wrap=True)
    for key, why in summary.failed_shards.items():
        console.print(f"[red]Failed[/]    {key}: {why}", soft_wrap=True)
    console.print("\nNext:")
    console.print(f"  boring-assets failures --output {shlex.quote(settings.output_dir)}", soft_wrap=True)
    variables = {
        "DAGSTER_HOME": os.environ["DAGSTER_HOME"],
        "BORING_INPUT_DIR": settings.input_dir,
        "BORING_OUTPUT_DIR": settings.output_dir,
        "BORING_MODEL": settings.model,
    }
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    console.print(f"  {environment} dagster dev -m boring_assets.definitions", soft_wrap=True)
