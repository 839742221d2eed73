"""What is done and what is not: the input's shards against Dagster's record of each partition."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

import dagster as dg
from sqlalchemy.exc import IntegrityError, InternalError

from boring_assets.datasets import UNNAMED, Dataset
from boring_assets.engine.model.devices import devices
from boring_assets.engine.samples import Shard
from boring_assets.tags import DATA_VERSION_TAG, POOL
from partitions.discovery import Discovery

_ADD_AT_ONCE = 5000


class State(StrEnum):
    """What a shard is to Dagster."""

    NEW = "new"
    CHANGED = "changed"
    OTHER_SETTINGS = "other settings"
    FAILED = "failed"
    LOST = "lost"
    RUNNING = "running"
    DONE = "done"
    GONE = "gone"
    GROWING = "growing"


PENDING = (State.NEW, State.CHANGED, State.FAILED, State.LOST)


@dataclass(frozen=True)
class ShardStates:
    """Every shard's state at one moment.

    Attributes:
        states: State by partition key, for each shard of the input and each partition that Dagster knows.
        shards: The complete shards by key.
        order: Partition keys in Dagster's own order, which decides what a range of partitions means.
    """

    states: dict[str, State]
    shards: dict[str, Shard]
    order: list[str]

    def count(self) -> Counter[State]:
        """How many shards are in each state."""
        return Counter(self.states.values())

    def keys(self, states: Iterable[State]) -> list[str]:
        """Keys of the registered partitions in any of some states, in Dagster's order."""
        wanted = set(states)
        return [key for key in self.order if self.states[key] in wanted]


def register(
    instance: dg.DagsterInstance, found: Discovery, dataset: Dataset = UNNAMED, device: str = "auto"
) -> list[str]:
    """Adds the partitions of shards that are new, and prepares the pool for their runs.

    Args:
        instance: Dagster's instance.
        found: What the input holds.
        dataset: Whose shards these are.
        device: The setting `device`.

    Returns:
        The keys that were added, in order.
    """
    known = set(dataset.keys(instance))
    new = [shard.key for shard in found.shards if shard.key not in known]
    for start in range(0, len(new), _ADD_AT_ONCE):
        instance.add_dynamic_partitions(str(dataset.shards.name), new[start : start + _ADD_AT_ONCE])
    _prepare_pool(instance, device)
    return new


def _prepare_pool(instance: dg.DagsterInstance, device: str) -> None:
    """Sets the limit of the pool before there are runs: `dagster.yaml`'s default, or one for each device.

    Dagster's queue sets the default too, but in a new home only after it has started all the runs that it
    found in its first look.
    """
    storage = instance.event_log_storage
    if POOL not in storage.get_concurrency_keys():
        try:
            storage.initialize_concurrency_limit_to_default(POOL)
        except (IntegrityError, InternalError):  # PostgreSQL gives the latter
            if POOL not in storage.get_concurrency_keys():  # else another process did so at the same moment
                raise
    if POOL not in storage.get_concurrency_keys():
        storage.set_concurrency_slots(POOL, len(devices(device)))
    # Dagster frees the slot of a run that was killed only where `run_monitoring` says so.
    for run_id in storage.get_concurrency_info(POOL).active_run_ids:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def get_shard_states(
    instance: dg.DagsterInstance,
    found: Discovery,
    settings: str,
    committed: Callable[[], Collection[str]],
    dataset: Dataset = UNNAMED,
) -> ShardStates:
    """Compares the input with Dagster's record.

    Args:
        instance: Dagster's instance.
        found: What the input holds.
        settings: The settings that decide an embedding's numbers; see `Settings.embedding_version`.
        committed: Lists the partitions whose embeddings file is there; one that Dagster has an event of
            and that is not among them is lost. Asked after Dagster is, since a run commits before it
            reports.
        dataset: Whose shards these are.

    Returns:
        The state of each shard.
    """
    order = dataset.keys(instance)
    shards = {shard.key: shard for shard in found.shards}
    recorded = instance.event_log_storage.get_latest_tags_by_partition(
        dataset.embeddings, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    statuses = instance.get_status_by_partition(dataset.embeddings, order, dataset.shards) if order else None
    named = {key: status.value for key, status in (statuses or {}).items() if status}
    there = committed()
    states = dict.fromkeys(found.growing, State.GROWING)
    for key in [*order, *shards]:
        made = recorded.get(key, {}).get(DATA_VERSION_TAG)
        states[key] = _state(shards.get(key), made, named.get(key, ""), settings, key in there)
    growing = {key: State.GROWING for key in found.growing if states[key] is State.GONE}
    return ShardStates({**states, **growing}, shards, order)


def _state(
    shard: Shard | None,
    made: str | None,
    status: str,
    settings: str,
    committed: bool,
) -> State:
    if shard is None:
        return State.GONE
    if status == "IN_PROGRESS":
        return State.RUNNING
    source_version, _, made_with = (made or "").partition("@")
    if source_version != shard.version:
        if status == "FAILED":
            return State.FAILED
        return State.CHANGED if made else State.NEW
    if not committed:
        return State.FAILED if status == "FAILED" else State.LOST
    return State.DONE if made_with == settings else State.OTHER_SETTINGS


def data_version(source_version: str, settings: str) -> str:
    """What a partition was made from and with: Dagster's data version of it."""
    return f"{source_version}@{settings}"


def ranges(order: list[str], wanted: Iterable[str], most: int) -> list[tuple[str, str, int]]:
    """Cuts a selection into contiguous ranges of partitions, which is what a run can be given.

    Args:
        order: All partition keys in Dagster's order.
        wanted: The selection.
        most: Most partitions in one range.

    Returns:
        First key, last key and number of partitions of each range, in order.
    """
    selected = set(wanted)
    found: list[tuple[str, str, int]] = []
    open_range = False
    for key in order:
        if key not in selected:
            open_range = False
        elif open_range and found[-1][2] < most:
            found[-1] = (found[-1][0], key, found[-1][2] + 1)
        else:
            found.append((key, key, 1))
            open_range = True
    return found
