"""Finds what a run with the tag `boring_assets/retry` embeds: failed rows of committed shards."""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import SettingsError, ShardError
from boring_assets.output.merging import read_committed
from boring_assets.storage.root import Root
from boring_assets.tags import REDO_TAG, RETRY_TAG

_READERS = 16

RETRIED_REASONS = frozenset(Reason) - {Reason.NOT_DOWNLOADED, Reason.EXCLUDED}
"""The reasons that are retried by default: those that can change while the shard does not."""


def reasons_to_retry(tags: Mapping[str, str]) -> frozenset[Reason] | None:
    """Returns the reasons whose rows a run retries, by its tags; None for an ordinary run.

    Raises:
        SettingsError: The tag names an unknown reason, or contradicts another tag.
    """
    value = tags.get(RETRY_TAG, "").strip()
    if value.lower() in ("", "false"):
        return None
    if tags.get(REDO_TAG) == "true":
        raise SettingsError(f"The run has the tags {RETRY_TAG} and {REDO_TAG}. Remove one of them.")
    if value.lower() == "true":
        return RETRIED_REASONS
    names = {name.strip() for name in value.split(",")} - {""}
    if unknown := sorted(names - set(Reason)):
        raise SettingsError(
            f"The tag {RETRY_TAG} names {', '.join(unknown)}. Expected: `true`, or some of the reasons "
            f"{', '.join(Reason)}, with commas between them."
        )
    return frozenset(map(Reason, names))


def check_settings(known: Mapping[Shard, Mapping[str, Any]], settings: str) -> None:
    """Refuses to retry unchanged shards that other settings made: all of them would be embedded again.

    Args:
        known: Metadata of each shard's committed file; empty if there is none.
        settings: `embedding_version` of this run.

    Raises:
        SettingsError: A shard was embedded with other settings.
    """
    for shard, facts in known.items():
        if facts.get("source_version") == shard.version and facts.get("settings") != settings:
            raise SettingsError(
                f"{shard.key} was embedded with {facts.get('settings')}, and this run is set to {settings}. "
                "A retry needs the settings that the shard was embedded with."
            )


def rows_to_retry(
    root: Root, shards: Collection[Shard], reasons: Collection[Reason], warn: Callable[[str], None]
) -> dict[Shard, frozenset[int]]:
    """Returns the failed rows of committed shards, by shard.

    Args:
        root: The output.
        shards: Shards that are committed in their present version.
        reasons: Only rows that failed for one of these.
        warn: Called with the error of a shard whose rows are unknown; it is left out of the result.

    Raises:
        StorageError: The output cannot be read.
    """

    def one(shard: Shard) -> frozenset[int] | None:
        try:
            return read_committed(root, shard.key, []).rows_to_retry(reasons)
        except ShardError as error:
            warn(str(error))
            return None

    with ThreadPoolExecutor(_READERS, "retry") as pool:
        found = dict(zip(shards, pool.map(one, shards), strict=True))
    return {shard: rows for shard, rows in found.items() if rows is not None}
