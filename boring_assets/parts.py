"""The parts of a split dataset: each has its own partitions and assets, over one input and one output.

The setting `split` says how many shards a part takes. New shards go into the last part, in the order of their
names, and then a new part begins. A shard stays in the part in which it was registered: Dagster's record of
partitions says which that is. The output's `.parts.json` says how many parts there are, so that definitions
load without listing anything.
"""

import posixpath
from collections.abc import Sequence
from itertools import groupby, zip_longest

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.errors import SettingsError
from boring_assets.output.origin import is_same, origin_of
from boring_assets.output.state import Json, locked, read_json, update_json
from boring_assets.settings import Settings
from boring_assets.shard_states import add_partitions, prepare_pool
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import open_root
from partitions.discovery import Discovery
from partitions.own_files import PARTS


def get_parts(settings: Settings, dataset: Dataset | None = None) -> list[Dataset]:
    """Returns the parts that have shards, in order; the dataset itself where it is not split.

    Args:
        settings: The dataset's settings.
        dataset: The dataset's names, where it shares a code location.

    Raises:
        SettingsError: The output is split, but the setting `split` is missing.
        StorageError: The output cannot be read.
    """
    dataset = dataset or Dataset.from_settings(settings)
    count = len(read_parts(settings))
    if settings.split:
        return [dataset.of_part(number) for number in range(1, 1 + count)]
    if count:
        raise SettingsError(
            f"{settings.output_dir} is split into parts. Set BORING_SPLIT as it was set before. To have one "
            f"asset again, delete {PARTS} there: the next run then reports all shards to that asset."
        )
    return [dataset]


def get_parts_to_define(settings: Settings, dataset: Dataset) -> list[Dataset]:
    """Returns the parts to load assets for: one more than have shards, for the shards that come next.

    Raises:
        StorageError: The output cannot be read.
    """
    if not settings.split:  # then nothing is read, and definitions load without the output
        return [dataset]
    parts = get_parts(settings, dataset)
    return [*parts, dataset.of_part(len(parts) + 1)]


def read_parts(settings: Settings) -> list[Json]:
    """Returns the output's record of each part: the number of `shards`, the `first` and `last` by name.

    It is empty if the output is not split, or has no shards yet.

    Raises:
        StorageError: The output cannot be read.
    """
    if not settings.output_dir:
        return []
    root = open_root(settings.output_dir)
    with storage_errors(f"{root.uri}/{PARTS}", "read"):
        return list(read_json(root, PARTS).get("parts", []))


def register_shards(instance: dg.DagsterInstance, found: Discovery, settings: Settings) -> list[str]:
    """Adds the partitions of new shards and prepares the pool for their runs; returns the new keys.

    Raises:
        SettingsError: The output is split, but the setting `split` is missing.
        StorageError: The record of the parts in the output cannot be read or written.
    """
    new = register_keys(instance, [shard.key for shard in found.shards], settings)
    prepare_pool(instance, settings.device)
    return new


def describe_other_input(instance: dg.DagsterInstance, settings: Settings) -> str:
    """Returns a warning if the partitions are those of another input, whose shards may have the same keys.

    Dagster's instance keeps the input of each name of partitions, as it keeps the cursors of its daemons.

    Raises:
        StorageError: The output cannot be read.
    """
    dataset, uri = Dataset.from_settings(settings), open_root(settings.input_dir).uri
    cursor = f"boring_assets/input/{dataset.shards.name}"
    before = instance.daemon_cursor_storage.get_cursor_values({cursor}).get(cursor)
    if before == uri:
        return ""
    if before and not is_same(before, uri):
        moved = origin_of(open_root(settings.output_dir)).includes(before, earlier=True)
        if not moved and any(part.keys(instance) for part in get_parts(settings)):
            return (
                f"This Dagster instance has partitions named `{dataset.shards.name}` of another input, "
                f"{before}. A shard with the same key in both is embedded again each time that the input "
                "changes. Name this dataset (BORING_DATASET), or use another DAGSTER_HOME."
            )
    instance.daemon_cursor_storage.set_cursor_values({cursor: uri})
    return ""


def register_keys(instance: dg.DagsterInstance, keys: Sequence[str], settings: Settings) -> list[str]:
    """Adds those of some partitions, sorted, that are not there yet, each to a part; returns what was added.

    Raises:
        SettingsError: The output is split, but the setting `split` is missing.
        StorageError: The record of the parts in the output cannot be read or written.
    """
    dataset = Dataset.from_settings(settings)
    if not settings.split:
        get_parts(settings)  # an output that is split needs the setting
        known = set(dataset.keys(instance))
        new = [key for key in keys if key not in known]
        add_partitions(instance, dataset, new)
        return new
    root = open_root(settings.output_dir)
    with locked(root):
        parts = _registered(instance, dataset, len(read_parts(settings)))
        known = {key for part in parts for key in part}
        new = [key for key in keys if key not in known]
        added = assign(new, [len(part) for part in parts], settings.split)
        for number, more in enumerate(added, 1):
            add_partitions(instance, dataset.of_part(number), more)
        parts = [[*old, *more] for old, more in zip_longest(parts, added, fillvalue=())]
        facts = [{"shards": len(one), "first": min(one), "last": max(one)} if one else {} for one in parts]
        with storage_errors(f"{root.uri}/{PARTS}", "write"):
            if facts:
                update_json(root, PARTS, lambda before: _note(before, facts), indent=1)
    return new


def assign(new: Sequence[str], counts: Sequence[int], most: int) -> list[list[str]]:
    """Returns the new keys of each part, of existing and of new parts.

    A folder that does not fit into the rest of a part begins the next part, so that parts end between folders
    if possible.
    """
    added: list[list[str]] = [[] for _ in counts]
    room = most - counts[-1] if counts else 0
    for _, folder in groupby(new, posixpath.dirname):
        keys = list(folder)
        while keys:
            if room < most and len(keys) > room:
                added.append([])
                room = most
            added[-1] += keys[:room]
            keys, room = keys[room:], max(0, room - len(keys))
    return added


def _registered(instance: dg.DagsterInstance, dataset: Dataset, noted: int) -> list[list[str]]:
    """Returns the partitions of each part, also of parts that the output has no record of.

    Two processes that register at once, where the output cannot be locked, may both take a shard: it then
    leaves the later part.
    """
    found: list[list[str]] = []
    seen: set[str] = set()
    while True:
        part = dataset.of_part(len(found) + 1)
        keys = part.keys(instance)
        if not keys and len(found) >= noted:
            return found
        for key in seen.intersection(keys):
            instance.delete_dynamic_partition(str(part.shards.name), key)
        found.append([key for key in keys if key not in seen])
        seen.update(keys)


def _note(before: Json, facts: list[Json]) -> Json:
    """Never lowers the number of parts: another Dagster instance may have its own parts over the output."""
    return {"parts": facts + list(before.get("parts", []))[len(facts) :]}
