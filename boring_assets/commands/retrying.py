"""For `boring-assets retry`: finds the shards with failed images, and runs the job over them."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console

from boring_assets.assets.retry import RETRIED_REASONS
from boring_assets.commands.embedding import open_dataset, run_shards
from boring_assets.commands.progress_bar import ProgressBar
from boring_assets.commands.report import Summary, describe_model
from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import SettingsError
from boring_assets.output.files import EMBEDDINGS, committed_facts
from boring_assets.settings import Settings
from boring_assets.shard_states import State
from boring_assets.storage.root import Root
from boring_assets.tags import RETRY_TAG
from boring_assets.wording import first_of, some
from partitions.shards import uri_of
from resources.embeddings_io import EmbeddingsIOManager

_READERS = 16


def retry_failed(
    settings: Settings, reasons: Collection[Reason], only: Collection[str]
) -> tuple[Summary, list[str]]:
    """Embeds the failed images of committed shards again.

    Args:
        settings: Input, output, model and the rest.
        reasons: Only images that failed for one of these; empty is `RETRIED_REASONS`.
        only: Keys of shards; empty is all.

    Returns:
        What was done, and the keys of the shards that were left out since they have changed.

    Raises:
        SettingsError: A setting is wrong, a shard of `only` is not embedded, or other settings made it.
        StorageError: The input or the output cannot be read, or the output cannot be written.
        RunError: A run failed; what was committed before stays.
    """
    reasons = frozenset(reasons) or RETRIED_REASONS
    settings = settings.model_copy(update={"max_samples": 0})  # it would cut shards off
    embeddings = EmbeddingsIOManager.from_settings(settings)
    with open_dataset(settings, embeddings) as (instance, _, states):
        committed = embeddings.committed()
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
        counts, changed = _count_failures(embeddings.root(), states.shards, keys, reasons, settings)
        wanted = [key for key in keys if counts.get(key)]
        if not wanted:
            return Summary(), changed
        shards = [states.shards[key] for key in wanted]
        tags = {RETRY_TAG: ",".join(sorted(reasons))}
        with ProgressBar(Console(highlight=False), shards, sum(counts.values())) as bar:
            return run_shards(settings, instance, states, wanted, bar, tags), changed


def _count_failures(
    root: Root, shards: Mapping[str, Shard], keys: list[str], reasons: Collection[Reason], settings: Settings
) -> tuple[dict[str, int], list[str]]:
    """Returns how many images of each shard failed for some reasons, and which shards have changed.

    Raises:
        SettingsError: A shard with such images was embedded with other settings.
        StorageError: A file cannot be read.
    """
    counts, changed, other = {}, [], []
    for key, facts in _read_facts(root, keys):
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
            f"{root.uri} holds {some(len(other), 'shard')} embedded with other settings than "
            f"{describe_model(settings)}: {first_of(other)}. A retry needs the settings that they were "
            "embedded with."
        )
    return counts, changed


def _read_facts(root: Root, keys: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with ThreadPoolExecutor(_READERS) as pool:
        facts = pool.map(lambda key: committed_facts(root, f"{EMBEDDINGS}/{uri_of('', key)}"), keys)
        yield from zip(keys, facts, strict=True)
