"""The state of each shard: the input's shards compared with Dagster's record of their partitions."""

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
    """The state of a shard.

    `LOST` is reported as done and has no embeddings file; `GONE` is a partition without a shard; a `GROWING`
    shard is still being written.
    """

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
    """The state of every shard at one moment.

    Attributes:
        states: State by partition key, for each shard of the input and each partition that Dagster knows.
        shards: The complete shards by key.
        order: Partition keys in Dagster's own order, which decides what a range of partitions means.
    """

    states: dict[str, State]
    shards: dict[str, Shard]
    order: list[str]

    def count(self) -> Counter[State]:
        """Returns how many shards are in each state."""
        return Counter(self.states.values())

    def keys(self, states: Iterable[State]) -> list[str]:
        """Returns the keys of the registered partitions in some states, in Dagster's order."""
        wanted = set(states)
        return [key for key in self.order if self.states[key] in wanted]


def register(
    instance: dg.DagsterInstance, discovery: Discovery, dataset: Dataset = UNNAMED, device: str = "auto"
) -> list[str]:
    """Adds the partitions of shards that are new, and prepares the pool for their runs.

    Args:
        instance: Dagster's instance.
        discovery: The shards of the input.
        dataset: The dataset's names.
        device: The setting `device`.

    Returns:
        The keys that were added, in order.
    """
    known = set(dataset.keys(instance))
    new = [shard.key for shard in discovery.shards if shard.key not in known]
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
    # Other launchers send runs to machines with devices of their own.
    local = isinstance(instance.run_launcher, dg.DefaultRunLauncher)
    if local and POOL not in storage.get_concurrency_keys():
        storage.set_concurrency_slots(POOL, len(devices(device)))
    # Dagster frees the slot of a run that was killed only where `run_monitoring` says so.
    for run_id in storage.get_concurrency_info(POOL).active_run_ids:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def get_shard_states(
    instance: dg.DagsterInstance,
    discovery: Discovery,
    settings: str,
    committed: Callable[[], Collection[str]],
    dataset: Dataset = UNNAMED,
) -> ShardStates:
    """Returns the state of each shard of the input and of each partition.

    Args:
        instance: Dagster's instance.
        discovery: The shards of the input.
        settings: The present `Settings.embedding_version`.
        committed: Lists the partitions that have an embeddings file. It is called after Dagster's record was
            read: a run commits a shard before it reports it.
        dataset: The dataset's names.
    """
    order = dataset.keys(instance)
    shards = {shard.key: shard for shard in discovery.shards}
    # Statuses first: a shard that is finished between the reads counts as running, not as new.
    statuses = instance.get_status_by_partition(dataset.embeddings, order, dataset.shards) if order else None
    recorded = instance.event_log_storage.get_latest_tags_by_partition(
        dataset.embeddings, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    files = committed()
    states = {
        key: _state(
            shards.get(key),
            recorded.get(key, {}).get(DATA_VERSION_TAG, ""),
            getattr((statuses or {}).get(key), "value", ""),
            settings,
            key in files,
        )
        for key in [*order, *shards]
    }
    for key in discovery.growing:
        if states.get(key, State.GONE) is State.GONE:
            states[key] = State.GROWING
    return ShardStates(states, shards, order)


def _state(shard: Shard | None, recorded: str, status: str, settings: str, has_file: bool) -> State:
    """Returns the state of one shard from the data version and the status that Dagster has of it."""
    if shard is None:
        return State.GONE
    if status == "IN_PROGRESS":
        return State.RUNNING
    source_version, _, made_with = recorded.partition("@")
    if source_version == shard.version and has_file:
        return State.DONE if made_with == settings else State.OTHER_SETTINGS
    if status == "FAILED":
        return State.FAILED
    if source_version == shard.version:
        return State.LOST
    return State.CHANGED if recorded else State.NEW


def data_version(source_version: str, settings: str) -> str:
    """Returns Dagster's data version of a partition: the version of its shard, and the settings."""
    return f"{source_version}@{settings}"


def ranges(order: list[str], selection: Iterable[str], most: int) -> list[tuple[str, str, int]]:
    """Returns a selection as contiguous ranges of partitions, in order; a run can be given one range.

    Args:
        order: All partition keys in Dagster's order.
        selection: The keys to cover.
        most: Most partitions in one range.

    Returns:
        First key, last key and number of partitions of each range.
    """
    selected = set(selection)
    cut: list[tuple[str, str, int]] = []
    is_open = False
    for key in order:
        if key not in selected:
            is_open = False
        elif is_open and cut[-1][2] < most:
            cut[-1] = (cut[-1][0], key, cut[-1][2] + 1)
        else:
            cut.append((key, key, 1))
            is_open = True
    return cut
