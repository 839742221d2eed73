"""The nearest-neighbour index: one LanceDB table over all committed embeddings, updated by what changed.

Each row has the version of its file in the column `load`, so the table itself shows what it holds. An update
adds new rows and then removes old ones, each in an atomic commit. If it is killed in between, the next update
repairs the table. Two updates at the same time end in the same state.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa

from boring_assets.errors import StorageError
from boring_assets.output.schema import read_facts
from boring_assets.search.lance import TABLE, connect, index_errors, open_table, quote
from boring_assets.search.rows import (
    OWN,
    VECTOR,
    Footers,
    Source,
    list_sources,
    load_rows,
    read_footers,
    schema_of,
    widest,
)
from boring_assets.storage.root import Root

INDEXED_FROM = 50_000
"""Number of rows from which a vector index is built; below, LanceDB compares every vector."""
_RETRAIN = 4  # times as many rows as the index was trained on
_GROUP_BYTES = 128 * 2**20
_AT_ONCE = 200
_SCANNED = 1_000_000
_MANY = 256
_TRIES = 10
_KEEP = timedelta(hours=1)
_NAME = "vector_"
_FIXED = {*(column.name for column in OWN), VECTOR}
_ROWS = "input"
"""Marks in the table's metadata that `row` is the row of the input."""


@dataclass
class Update:
    """The result of an update."""

    added: int = 0  # shards that were read
    removed: int = 0  # shards whose earlier rows were removed: changed, gone, or loaded twice
    rows: int = 0  # of the index afterwards
    failed: dict[str, str] = field(default_factory=dict)  # why a shard could not be read, by key
    other_model: list[str] = field(default_factory=list)  # shards left out: not the index's model
    rebuilt: bool = False  # whether all rows were read
    columns: dict[str, str] = field(default_factory=dict)  # why one is renamed or left out, by name


@dataclass(frozen=True)
class _Plan:
    kept: set[str]  # partitions
    superfluous: dict[str, str]  # loads to remove, with their partitions
    missing: dict[str, Source]  # files of partitions


def update_index(
    root: Root, *, rebuild: bool = False, say: Callable[[str], None] = lambda text: None
) -> Update:
    """Brings the index up to date with the committed embeddings; returns what was done.

    Raises:
        SettingsError: LanceDB is not installed, or cannot write to such a storage.
        StorageError: The output cannot be read or written, or nothing is embedded yet.
    """
    current = list_sources(root)
    table = None if rebuild else open_table(root)
    if table is not None and model_of(table.schema).get("rows") != _ROWS:
        table = None  # `row` counted the rows of the embeddings file in an earlier version
    if table is None and not current:
        raise StorageError(f"Nothing is embedded below {root.uri} yet. Run `boring-assets embed` first.")
    done = Update(rebuilt=table is None)
    plan = _plan(root, table, current)
    footers = _read_all_footers(root, plan.missing, done)
    if table is None:
        if not footers:
            return done
        table = _create(root, footers)
    elif footers and _needs_rebuild(table.schema, plan, footers):
        return update_index(root, rebuild=True, say=say)
    weights = _weights_of(table.schema)  # the vectors of two models cannot be compared
    done.other_model = [key for key, each in footers.items() if each.weights != weights]
    footers = {key: each for key, each in footers.items() if each.weights == weights}
    _add(root, table, plan.missing, footers, done, say)
    _remove(root, table, _plan(root, table, current).superfluous, done)
    if not plan.kept and footers:
        _drop_columns(root, table, footers)
    if done.added or done.removed or done.rebuilt:
        _write(root, table, lambda: _optimize(table, say))
    with index_errors(root, "read"):
        done.rows = table.count_rows()
    return done


def model_of(schema: pa.Schema) -> dict[str, Any]:
    """Returns the index's model: `model`, `pretrained`, `weights_digest`, `dim`."""
    return read_facts(schema.metadata)


def has_vector_index(table: Any) -> bool:
    """Returns whether searches are approximate."""
    return any(index.name.startswith(_NAME) for index in table.list_indices())


def _plan(root: Root, table: Any, current: dict[str, Source]) -> _Plan:
    loads = _loads(root, table) if table is not None else {}
    kept: set[str] = set()
    superfluous: dict[str, str] = {}
    for partition, present in loads.items():
        source = current.get(partition)
        right = sorted(load for load in present if source and load.rpartition(" ")[0] == source.version)
        # Another update at the same time makes the same choice.
        superfluous |= {load: partition for load in present if load not in right[:1]}
        kept |= {partition} if right else set()
    return _Plan(kept, superfluous, {key: source for key, source in current.items() if key not in kept})


def _loads(root: Root, table: Any) -> dict[str, set[str]]:
    """Returns the loads of each partition in the table."""
    loads: dict[str, set[str]] = defaultdict(set)
    columns = ["partition", "load"]
    with index_errors(root, "read"):
        for batch in table.search().select(columns).to_batches(_SCANNED):
            pairs = pa.table(batch).group_by(columns).aggregate([])
            for partition, load in zip(*(pairs[name].to_pylist() for name in columns), strict=True):
                loads[partition].add(load)
    return loads


def _read_all_footers(root: Root, sources: dict[str, Source], done: Update) -> dict[str, Footers]:
    """Reads the footers of some partitions; errors go into `done`."""
    with ThreadPoolExecutor(16) as pool:
        reads = {key: pool.submit(read_footers, root, key, one.derived) for key, one in sources.items()}
    footers = {}
    for key, read in reads.items():
        try:
            found = read.result()
        except StorageError as error:
            done.failed[key] = str(error)
            continue
        if found.facts.get("embedded") != 0:  # a shard without embeddings has no rows in the index
            footers[key] = found
    return footers


def _needs_rebuild(schema: pa.Schema, plan: _Plan, footers: dict[str, Footers]) -> bool:
    """Returns whether all rows have another model now, or some columns need a wider type."""
    if not plan.kept and _most(footers) != _weights_of(schema):
        return True
    there = {column.name: column.type for column in schema if column.name not in _FIXED}
    wanted = widest([there, *(each.kinds for each in footers.values())])
    return any(wanted[name] != kind for name, kind in there.items())


def _weights_of(schema: pa.Schema) -> tuple[str, int]:
    about = model_of(schema)
    return about["weights_digest"], about["dim"]


def _most(footers: dict[str, Footers]) -> tuple[str, int]:
    """Returns the model of most files; see `Footers.weights`."""
    return Counter(each.weights for each in footers.values()).most_common(1)[0][0]


def _drop_columns(root: Root, table: Any, footers: dict[str, Footers]) -> None:
    """Drops the columns that no file has any more, e.g. those of a removed head."""
    kept = _FIXED | widest(each.kinds for each in footers.values()).keys()
    if gone := [name for name in table.schema.names if name not in kept]:
        _write(root, table, lambda: table.drop_columns(gone))


def _create(root: Root, footers: dict[str, Footers]) -> Any:
    """Creates an empty table for the model of most files; an earlier table is replaced."""
    weights = _most(footers)
    same = [each for each in footers.values() if each.weights == weights]
    facts = same[0].facts
    about = {name: facts.get(name) for name in ("model", "pretrained", "weights_digest", "dim")}
    about["rows"] = _ROWS
    schema = schema_of(widest(each.kinds for each in same), facts, json.dumps(about).encode())
    with index_errors(root, "write"):
        return connect(root).create_table(TABLE, schema=schema, mode="overwrite")


def _add(
    root: Root,
    table: Any,
    sources: dict[str, Source],
    footers: dict[str, Footers],
    done: Update,
    say: Callable[[str], None],
) -> None:
    """Adds the rows of several files at once: each commit adds a version and a file to the table."""
    columns = widest(each.kinds for each in footers.values())
    for each in footers.values():
        done.columns |= each.notes
    if new := [pa.field(name, kind) for name, kind in columns.items() if name not in table.schema.names]:
        _write(root, table, lambda: table.add_columns(new))
    group: list[pa.Table] = []
    for number, key in enumerate(footers, 1):
        try:
            rows, notes = load_rows(root, key, sources[key], table.schema)
            group.append(rows)
            done.columns |= {name: f"{note}, in {key}" for name, note in notes.items()}
        except StorageError as error:
            done.failed[key] = str(error)
        if group and (number == len(footers) or sum(part.nbytes for part in group) > _GROUP_BYTES):
            _write(root, table, partial(table.add, pa.concat_tables(group)))
            done.added += len(group)
            say(f"{done.added:,} of {len(footers):,} shards")
            group = []


def _remove(root: Root, table: Any, superfluous: dict[str, str], done: Update) -> None:
    loads = list(superfluous)
    for start in range(0, len(loads), _AT_ONCE):
        listed = ", ".join(map(quote, loads[start : start + _AT_ONCE]))
        _write(root, table, partial(table.delete, f"load IN ({listed})"))
    done.removed = len(set(superfluous.values()))


def _write(root: Root, table: Any, work: Callable[[], object]) -> None:
    """Commits to the table, and tries again after a conflict with another update."""
    with index_errors(root, "write"):
        for left in reversed(range(_TRIES)):
            try:
                work()
                return
            except RuntimeError as error:
                if not left or "commit conflict" not in str(error):
                    raise
                table.checkout_latest()


def _optimize(table: Any, say: Callable[[str], None]) -> None:
    """Joins small files, updates the vector index, and trains it again when the table has grown much."""
    from lancedb.index import IvfRq, IvfSq

    rows = table.count_rows()
    names = [index.name for index in table.list_indices() if index.name.startswith(_NAME)]
    trained = max((int(name.removeprefix(_NAME)) for name in names), default=0)
    table.optimize(cleanup_older_than=_KEEP)
    if rows >= max(INDEXED_FROM, trained * _RETRAIN):
        say(f"indexing {rows:,} vectors")
        # One bit per dimension, with exact distances for the best rows: too coarse for few dimensions.
        kind = IvfRq if table.schema.field(VECTOR).type.list_size >= _MANY else IvfSq
        table.create_index(VECTOR, config=kind(distance_type="cosine"), name=f"{_NAME}{rows}")
        for name in names:
            if name != f"{_NAME}{rows}":
                table.drop_index(name)
