"""Chooses the ranges of one command line, while others may embed the same dataset on other machines."""

import random
import time
from collections import deque
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from boring_assets.assets.sharing import UNFINISHED
from boring_assets.datasets import Dataset
from boring_assets.shard_states import Range, ranges
from boring_assets.tags import DATA_VERSION_TAG, EMBEDS_TAG

_CHECK_SECONDS = 10.0
# The clocks of the database and of this machine may differ.
_CLOCKS_DIFFER = timedelta(minutes=1)


def ranges_left(
    instance: dg.DagsterInstance,
    dataset: Dataset,
    order: list[str],
    wanted: Collection[str],
    most: int,
    since: int,
    mine: Collection[str],
    workers: int = 1,
) -> Iterator[tuple[str, str]]:
    """Yields first and last key of each range to embed, without what other runs have taken meanwhile.

    While other runs embed, the next range is a random one of the rest, so that two machines rarely take the
    same.

    Args:
        instance: Dagster's instance.
        dataset: The names of the dataset, or of the part.
        order: Its partitions in Dagster's order.
        wanted: Keys of the partitions to embed, of any part.
        most: Most partitions in one range.
        since: Number of the last event of the instance when the partitions were chosen.
        mine: The ids of the caller's own runs; the caller adds each.
        workers: How many processes of the caller take ranges in turn. Ranges become shorter towards the end,
            so that all are done at about the same time.
    """
    left = deque(ranges(order, wanted, most))
    checked, moment = time.monotonic(), datetime.now(UTC)
    while left:
        if workers > 1:
            _shorten(left, order, workers)
        first, last, _ = left.popleft()
        yield first, last
        if not left or time.monotonic() - checked < _CHECK_SECONDS:
            continue
        before, checked, moment = moment, time.monotonic(), datetime.now(UTC)
        if _others_run(instance, dataset, before, mine):
            keys = [key for begin, end, _ in left for key in order[order.index(begin) : order.index(end) + 1]]
            left = deque(ranges(order, set(keys) - _taken(instance, dataset, keys, since), most))
            left.rotate(-random.randrange(len(left) or 1))


def _shorten(left: deque[Range], order: list[str], workers: int) -> None:
    """Cuts the first range to three quarters of a worker's share of what is left."""
    first, last, size = left[0]
    most = max(1, 3 * sum(one.size for one in left) // (4 * workers))
    if size > most:
        cut = order.index(first) + most
        left[0] = Range(order[cut], last, size - most)
        left.appendleft(Range(first, order[cut - 1], most))


def _others_run(
    instance: dg.DagsterInstance, dataset: Dataset, since: datetime, mine: Collection[str]
) -> bool:
    """Returns whether another run embeds, or did so recently."""
    tags = {EMBEDS_TAG: dataset.embeddings.to_user_string()}
    recent = instance.get_runs(dg.RunsFilter(tags=tags, updated_after=since - _CLOCKS_DIFFER))
    unfinished = instance.get_runs(dg.RunsFilter(tags=tags, statuses=UNFINISHED))
    return any(run.run_id not in mine for run in (*recent, *unfinished))


def _taken(instance: dg.DagsterInstance, dataset: Dataset, keys: list[str], since: int) -> set[str]:
    """Returns the keys that a run has now, or that were reported since."""
    statuses = instance.get_status_by_partition(dataset.embeddings, keys, dataset.shards) or {}
    running = {key for key, status in statuses.items() if getattr(status, "value", "") == "IN_PROGRESS"}
    done = instance.event_log_storage.get_latest_tags_by_partition(
        dataset.embeddings,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        [DATA_VERSION_TAG],
        after_cursor=since,
    )
    return running | done.keys()
