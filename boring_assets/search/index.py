"""The nearest-neighbour index: one LanceDB table over all committed embeddings, updated by what changed.

Each row says which version of which file it came from, so the table itself knows what it holds: an update
adds what is new and then removes what is superseded, each in one atomic commit. One that is killed in between
leaves a table that the next one mends, and two at once end in the same state.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa

from boring_assets.errors import StorageError
from boring_assets.output.schema import read_facts
from boring_assets.search.filters import quote
from boring_assets.search.lance import TABLE, connect, open_table, storage_errors
from boring_assets.search.rows import (
    OWN,
    VECTOR,
    Peek,
    Source,
    list_sources,
    load_rows,
    peek,
    schema_of,
    widest,
)
from boring_assets.storage.root import Root

INDEXED_FROM = 50_000
"""Rows from which on there is an approximate index; below, LanceDB looks at every vector."""
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
"""What `row` counts, in the table's metadata."""


@dataclass
class Update:
    """What an update did.

    Attributes:
        added: Shards read anew.
        removed: Shards whose earlier rows were removed: changed, gone, or loaded twice.
        rows: Rows of the index afterwards.
        failed: Why a shard could not be read, by key; the others are in the index.
        other_model: Shards left out because another model made them than the index's.
        rebuilt: Whether all rows were read anew.
        columns: Columns that the index has under another name or not at all, and why, by name.
    """

    added: int = 0
    removed: int = 0
    rows: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    other_model: list[str] = field(default_factory=list)
    rebuilt: bool = False
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """Which loads stay, which go, and which shards are missing, with their files."""

    kept: set[str]
    superfluous: dict[str, str]
    missing: dict[str, Source]


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
        table = None  # an earlier version counted the rows of the embeddings file
    if table is None and not current:
        raise StorageError(f"Nothing is embedded below {root.uri} yet. Run `boring-assets embed` first.")
    done = Update(rebuilt=table is None)
    plan = _plan(root, table, current)
    peeks = _peek(root, plan.missing, done)
    if table is not None and peeks and _needs_rebuild(table.schema, plan, peeks):
        done = Update(rebuilt=True)
        table, plan = None, _plan(root, None, current)
        peeks = _peek(root, plan.missing, done)
    if table is None:
        table = _create(root, peeks)
    if table is None:
        return done
    _keep_the_models(table.schema, peeks, done)
    _add(root, table, {key: plan.missing[key] for key in peeks}, peeks, done, say)
    _remove(root, table, _plan(root, table, current).superfluous, done)
    if not plan.kept and peeks:
        _drop_columns(root, table, peeks)
    if done.added or done.removed or done.rebuilt:
        _write(root, table, lambda: _optimize(table, say))
    with storage_errors(root, "read"):
        done.rows = table.count_rows()
    return done


def model_of(schema: pa.Schema) -> dict[str, Any]:
    """What the index's model is: `model`, `pretrained`, `weights_digest`, `dim`."""
    return read_facts(schema.metadata)


def has_vector_index(table: Any) -> bool:
    """Whether a search is approximate."""
    return any(index.name.startswith(_NAME) for index in table.list_indices())


def _plan(root: Root, table: Any, current: dict[str, Source]) -> _Plan:
    loads = _loads(root, table) if table is not None else {}
    kept: set[str] = set()
    superfluous: dict[str, str] = {}
    for partition, its in loads.items():
        source = current.get(partition)
        right = sorted(load for load in its if source and load.rpartition(" ")[0] == source.version)
        # Whoever else updates the index at this moment makes the same choice.
        superfluous |= {load: partition for load in its if load not in right[:1]}
        kept |= {partition} if right else set()
    return _Plan(kept, superfluous, {key: source for key, source in current.items() if key not in kept})


def _loads(root: Root, table: Any) -> dict[str, set[str]]:
    """The loads of each partition that the table has rows of."""
    loads: dict[str, set[str]] = defaultdict(set)
    columns = ["partition", "load"]
    with storage_errors(root, "read"):
        for batch in table.search().select(columns).to_batches(_SCANNED):
            pairs = pa.table(batch).group_by(columns).aggregate([])
            for partition, load in zip(*(pairs[name].to_pylist() for name in columns), strict=True):
                loads[partition].add(load)
    return loads


def _peek(root: Root, sources: dict[str, Source], done: Update) -> dict[str, Peek]:
    """The footers of some partitions; which cannot be read is noted."""

    def one(key: str) -> Peek | StorageError:
        try:
            return peek(root, key, sources[key].derived)
        except StorageError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        answers = dict(zip(sources, pool.map(one, sources), strict=True))
    done.failed |= {key: str(answer) for key, answer in answers.items() if isinstance(answer, StorageError)}
    return {
        key: answer
        for key, answer in answers.items()
        # A shard without embeddings has no rows to be known by, and needs none.
        if isinstance(answer, Peek) and answer.facts.get("embedded") != 0
    }


def _needs_rebuild(schema: pa.Schema, plan: _Plan, peeks: dict[str, Peek]) -> bool:
    """Whether all rows are of another model now, or the index's columns cannot hold those of some files."""
    about = model_of(schema)
    other_model = _most(peeks) != (about["weights_digest"], about["dim"])
    if not plan.kept and other_model:
        return True
    there = {column.name: column.type for column in schema if column.name not in _FIXED}
    wanted = widest([there, *(each.kinds for each in peeks.values())])
    return any(wanted[name] != kind for name, kind in there.items())


def _most(peeks: dict[str, Peek]) -> tuple[str, int]:
    """The model that made most of some files; see `Peek.weights`."""
    return Counter(each.weights for each in peeks.values()).most_common(1)[0][0]


def _drop_columns(root: Root, table: Any, peeks: dict[str, Peek]) -> None:
    """Drops the columns that no file has, e.g. those of a head that is gone."""
    kept = _FIXED | widest(each.kinds for each in peeks.values()).keys()
    if gone := [name for name in table.schema.names if name not in kept]:
        _write(root, table, lambda: table.drop_columns(gone))


def _create(root: Root, peeks: dict[str, Peek]) -> Any:
    """An empty table for the model that made most of the files; an earlier table is replaced."""
    if not peeks:
        return None
    weights = _most(peeks)
    same = [each for each in peeks.values() if each.weights == weights]
    facts = same[0].facts
    about = {name: facts.get(name) for name in ("model", "pretrained", "weights_digest", "dim")}
    about["rows"] = _ROWS
    schema = schema_of(widest(each.kinds for each in same), facts, json.dumps(about).encode())
    with storage_errors(root, "write"):
        return connect(root).create_table(TABLE, schema=schema, mode="overwrite")


def _keep_the_models(schema: pa.Schema, peeks: dict[str, Peek], done: Update) -> None:
    """Leaves out what another model made: its vectors mean something else."""
    about = model_of(schema)
    done.other_model = [
        key for key, each in peeks.items() if each.weights != (about["weights_digest"], about["dim"])
    ]
    for key in done.other_model:
        del peeks[key]


def _add(
    root: Root,
    table: Any,
    missing: dict[str, Source],
    peeks: dict[str, Peek],
    done: Update,
    say: Callable[[str], None],
) -> None:
    there = set(table.schema.names)
    columns = widest(each.kinds for each in peeks.values())
    for each in peeks.values():
        done.columns |= each.columns.notes
    if new := [pa.field(name, kind) for name, kind in columns.items() if name not in there]:
        _write(root, table, lambda: table.add_columns(new))
    schema = table.schema
    for group in _groups(root, missing, schema, done):
        rows = pa.concat_tables(group)
        _write(root, table, partial(table.add, rows))
        done.added += len(group)
        say(f"{done.added:,} of {len(missing):,} shards")


def _groups(
    root: Root, missing: dict[str, Source], schema: pa.Schema, done: Update
) -> Iterator[list[pa.Table]]:
    """Yields the rows of several files at once: each commit adds a version and a file to the table."""
    group: list[pa.Table] = []
    for key, source in missing.items():
        try:
            rows, notes = load_rows(root, key, source, schema)
            group.append(rows)
            done.columns |= {name: f"{note}, in {key}" for name, note in notes.items()}
        except StorageError as error:
            done.failed[key] = str(error)
            continue
        if sum(part.nbytes for part in group) > _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _remove(root: Root, table: Any, superfluous: dict[str, str], done: Update) -> None:
    loads = list(superfluous)
    for start in range(0, len(loads), _AT_ONCE):
        listed = ", ".join(map(quote, loads[start : start + _AT_ONCE]))
        _write(root, table, partial(table.delete, f"load IN ({listed})"))
    done.removed = len(set(superfluous.values()))


def _write(root: Root, table: Any, work: Callable[[], object]) -> None:
    """Commits to the table; what another update has overtaken is tried again on what that one left."""
    with storage_errors(root, "write"):
        for left in reversed(range(_TRIES)):
            try:
                work()
                return
            except RuntimeError as error:
                if not left or "commit conflict" not in str(error):
                    raise
                table.checkout_latest()


def _optimize(table: Any, say: Callable[[str], None]) -> None:
    """Joins small files, brings the vector index up to date, and trains it again once it is far outgrown."""
    from lancedb.index import IvfRq, IvfSq

    rows = table.count_rows()
    names = [index.name for index in table.list_indices() if index.name.startswith(_NAME)]
    trained = max((int(name.removeprefix(_NAME)) for name in names), default=0)
    table.optimize(cleanup_older_than=_KEEP)
    if rows >= max(INDEXED_FROM, trained * _RETRAIN):
        say(f"indexing {rows:,} vectors")
        # One bit a number and a look at the best ones' vectors: right for many numbers, too coarse for few.
        kind = IvfRq if table.schema.field(VECTOR).type.list_size >= _MANY else IvfSq
        table.create_index(VECTOR, config=kind(distance_type="cosine"), name=f"{_NAME}{rows}")
        for name in names:
            if name != f"{_NAME}{rows}":
                table.drop_index(name)
