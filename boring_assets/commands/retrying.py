"""For `boring-assets retry`: finds the shards with failed images, and runs the job over them."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import click
from rich.console import Console

from boring_assets.assets.retry import RETRIED_REASONS
from boring_assets.commands.embedding import Opened, open_dataset, run_shards
from boring_assets.commands.report import ProgressBar, Summary, describe_model
from boring_assets.engine.samples import Reason
from boring_assets.errors import SettingsError
from boring_assets.settings import Settings
from boring_assets.shard_states import State
from boring_assets.tags import RETRY_TAG
from boring_assets.wording import first_of, plain, some

_READERS = 16


def retry_failed(settings: Settings, reasons: Collection[Reason], only: Collection[str]) -> Summary:
    """Embeds the failed images of committed shards again; prints and returns what was done.

    Args:
        settings: Input, output, model and the rest.
        reasons: Only images that failed for one of these; empty is `RETRIED_REASONS`.
        only: Keys of shards; empty is all.

    Raises:
        SettingsError: A setting is wrong, a shard of `only` is not embedded, or other settings made it.
        StorageError: The input or the output cannot be read, or the output cannot be written.
        RunError: A run failed; what was committed before stays.
    """
    reasons = frozenset(reasons) or RETRIED_REASONS
    settings = settings.model_copy(update={"max_samples": 0})  # it would cut shards off
    with open_dataset(settings) as dataset:
        states, committed = dataset.states, dataset.embeddings.committed()
        if unknown := sorted(set(only) - (committed & states.shards.keys())):
            raise SettingsError(f"--shard names {first_of(unknown)}, which the output does not hold.")
        keys = [
            key
            for key in states.order
            if key in committed
            and key in states.shards
            and states.states[key] is not State.RUNNING
            and (not only or key in only)
        ]
        counts, changed = _count_failures(dataset, keys, reasons)
        wanted = [key for key in keys if counts.get(key)]
        summary = Summary()
        if wanted:
            tags = {RETRY_TAG: ",".join(sorted(reasons))}
            console = Console(highlight=False)
            with ProgressBar(console, dataset.shards(wanted), sum(counts.values())) as bar:
                summary = run_shards(dataset, wanted, bar, tags)
    _print(summary, changed)
    return summary


def _print(summary: Summary, changed: list[str]) -> None:
    if changed:
        count = some(len(changed), "shard")
        click.echo(plain(f"Skipped, changed since: {count} ({first_of(changed)}). Run boring-assets embed."))
    if not summary.retried and not summary.failed_shards:
        click.echo("Nothing to retry: no image has failed for these reasons.")
        return
    again = summary.retried - summary.recovered
    click.echo(
        f"{some(summary.retried, 'failed image')} of {some(summary.shards, 'shard')} retried: "
        f"{summary.recovered:,} embedded now, {again:,} failed again."
    )
    for key, why in summary.failed_shards.items():
        click.echo(plain(f"Failed: {key}: {why}"))


def _count_failures(
    dataset: Opened, keys: list[str], reasons: Collection[Reason]
) -> tuple[dict[str, int], list[str]]:
    """Returns how many images of each shard failed for some reasons, and which shards have changed."""
    counts, changed, other = {}, [], []
    settings, embeddings, shards = dataset.settings, dataset.embeddings, dataset.states.shards
    with ThreadPoolExecutor(_READERS) as pool:
        for key, facts in zip(keys, pool.map(embeddings.facts, keys), strict=True):
            count = sum(facts.get("failed_by_reason", {}).get(reason, 0) for reason in reasons)
            if not count:
                continue
            if facts.get("source_version") != shards[key].version or facts.get("rows_left_out"):
                changed.append(key)
            elif facts.get("settings") != settings.embedding_version():
                other.append(key)
            else:
                counts[key] = count
    if other:
        raise SettingsError(
            f"{embeddings.root().uri} holds {some(len(other), 'shard')} embedded with other settings than "
            f"{describe_model(settings)}: {first_of(other)}. A retry needs the settings that they were "
            "embedded with."
        )
    return counts, changed
