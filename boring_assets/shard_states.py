"""The state of each shard: the input's shards compared with Dagster's record of their partitions."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

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
_NEED_FILE = (State.DONE, State.OTHER_SETTINGS)


class Range(NamedTuple):
    """A contiguous range of partitions, which one run can be given.

    Attributes:
        first: First partition key.
        last: Last partition key.
        size: Number of partitions.
    """

    first: str
    last: str
    size: int


@dataclass(frozen=True)
class ShardStates:
    """The state of every shard at one moment.

    Attributes:
        states: State by partition key, for each shard of the input and each partition that Dagster knows.
        shards: The complete shards by key.
        order: Partition keys in Dagster's own order, which decides what a range of partitions means; those of
            a split dataset part by part.
        parts: Each part with how many partitions it has; one where the dataset is not split.
    """

    states: dict[str, State]
    shards: dict[str, Shard]
    order: list[str]
    parts: list[tuple[Dataset, int]] = field(default_factory=list)

    def count(self) -> Counter[State]:
        """Returns how many shards are in each state."""
        return Counter(self.states.values())

    def keys(self, states: Iterable[State]) -> list[str]:
        """Returns the keys of the registered partitions in some states, in Dagster's order."""
        wanted = set(states)
        return [key for key in self.order if self.states[key] in wanted]

    def by_part(self) -> Iterator[tuple[Dataset, list[str]]]:
        """Yields each part with its partition keys, in Dagster's order."""
        start = 0
        for dataset, count in self.parts:
            yield dataset, self.order[start : start + count]
            start += count

    def ranges(self, selection: Iterable[str], most: int) -> Iterator[tuple[Dataset, Range]]:
        """Yields a selection as ranges of at most `most` partitions, each with its part, in order."""
        selected = set(selection)
        for dataset, order in self.by_part():
            for one in ranges(order, selected, most):
                yield dataset, one


def add_partitions(instance: dg.DagsterInstance, dataset: Dataset, keys: Sequence[str]) -> None:
    """Adds partitions, in order."""
    for start in range(0, len(keys), _ADD_AT_ONCE):
        instance.add_dynamic_partitions(str(dataset.shards.name), keys[start : start + _ADD_AT_ONCE])


def prepare_pool(instance: dg.DagsterInstance, device: str) -> None:
    """Sets the limit of the pool before there are runs: `dagster.yaml`'s default, or one for each device.

    Dagster's queue sets the default too, but in a new home only after it has started all the runs that it
    found in its first look.
    """
    storage = instance.event_log_storage
    if POOL not in storage.get_concurrency_keys():
        try:
            storage.initialize_concurrency_limit_to_default(POOL)
        except (IntegrityError, InternalError):  # the latter from PostgreSQL
            if POOL not in storage.get_concurrency_keys():  # else another process did so at the same time
                raise
    # Other launchers send runs to other machines.
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
    parts: Sequence[Dataset] = (UNNAMED,),
) -> ShardStates:
    """Returns the state of each shard of the input and of each partition.

    Args:
        instance: Dagster's instance.
        discovery: The shards of the input.
        settings: The present `Settings.embedding_version`.
        committed: Lists the partitions that have an embeddings file. It is called after Dagster's record was
            read: a run commits a shard before it reports it.
        parts: The dataset's names, or those of all of its parts.
    """
    shards = {shard.key: shard for shard in discovery.shards}
    states: dict[str, State] = {}
    order: list[str] = []
    counts: list[tuple[Dataset, int]] = []
    failed: set[str] = set()
    for part in parts:
        keys = part.keys(instance)
        # Statuses first: a shard that is finished between the reads counts as running, not as new.
        statuses = instance.get_status_by_partition(part.embeddings, keys, part.shards) if keys else None
        recorded = _recorded_versions(instance, part) if keys else {}
        for key in keys:
            status = getattr((statuses or {}).get(key), "value", "")
            states[key] = _state(shards.get(key), recorded.get(key, ""), status, settings)
            if status == "FAILED":
                failed.add(key)
        order += keys
        counts.append((part, len(keys)))
    files = committed()
    for key, state in states.items():
        if state in _NEED_FILE and key not in files:
            states[key] = State.FAILED if key in failed else State.LOST
    for key in shards:
        states.setdefault(key, State.NEW)
    for key in discovery.growing:
        if states.get(key, State.GONE) is State.GONE:
            states[key] = State.GROWING
    return ShardStates(states, shards, order, counts)


def _recorded_versions(instance: dg.DagsterInstance, dataset: Dataset) -> dict[str, str]:
    """Returns the data version of each partition's last materialization."""
    recorded = instance.event_log_storage.get_latest_tags_by_partition(
        dataset.embeddings, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return {key: tags[DATA_VERSION_TAG] for key, tags in recorded.items()}


def _state(shard: Shard | None, recorded: str, status: str, settings: str) -> State:
    """Returns the state of a shard by its data version and status in Dagster, if its file exists."""
    if shard is None:
        return State.GONE
    if status == "IN_PROGRESS":
        return State.RUNNING
    source_version, _, made_with = recorded.partition("@")
    if source_version == shard.version:
        return State.DONE if made_with == settings else State.OTHER_SETTINGS
    if status == "FAILED":
        return State.FAILED
    return State.CHANGED if recorded else State.NEW


def data_version(source_version: str, settings: str) -> str:
    """Returns Dagster's data version of a partition: the version of its shard, and the settings."""
    return f"{source_version}@{settings}"


def ranges(order: list[str], selection: Iterable[str], most: int) -> list[Range]:
    """Returns a selection as contiguous ranges of partitions, in order; a run can be given one range."""
    selected = selection if isinstance(selection, Set) else set(selection)
    cut: list[Range] = []
    is_open = False
    for key in order:
        if key not in selected:
            is_open = False
        elif is_open and cut[-1].size < most:
            cut[-1] = Range(cut[-1].first, key, cut[-1].size + 1)
        else:
            cut.append(Range(key, key, 1))
            is_open = True
    return cut
