"""Rows of the index: which columns of an embeddings file it takes, under which names and types.

The columns of `image_labels` and `clip_scores` are joined to them by the input row.

Shards may have different types in a column of one name. Numbers become int64, uint64 or float64; dates, UUIDs
and other texts become strings; where two shards differ, the wider type wins. Nested and binary columns are
left out, and so is a column whose values do not convert: the vectors of a shard are always indexed.
"""

import re
import uuid
from collections import ChainMap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.inputs.image_values import is_binary
from boring_assets.errors import StorageError
from boring_assets.output.derived import Derived, derived_schema, read_derived
from boring_assets.output.files import file_versions
from boring_assets.output.schema import META_PREFIX, METADATA_KEY, ROW, input_rows, read_facts
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, FAILURES
from partitions.shards import uri_of

OWN = (
    pa.field("partition", pa.string()),
    pa.field("load", pa.string()),
    pa.field(ROW, pa.int64()),
    pa.field("key", pa.string()),
    pa.field("url", pa.string()),
    pa.field("caption", pa.string()),
)
"""The index's own columns. `load` is the version of a row's file, and an id of the read."""
VECTOR = "vector"
# LanceDB takes a dot for a path into a struct, and cannot quote the others.
_NOT_IN_A_NAME = re.compile(r"[.`\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Source:
    """The files of one partition's rows."""

    version: str  # changes with the embeddings file and with the files of `derived`
    derived: tuple[str, ...]  # paths of its files in `image_labels` and `clip_scores`


def list_sources(root: Root) -> dict[str, Source]:
    """Returns the files of each committed partition's rows, by key.

    Raises:
        StorageError: The output cannot be listed.
    """
    derived = Derived.of(root)
    return {
        key: Source(f"{version} {derived.version(key)}".rstrip(), tuple(derived.paths(key)))
        for key, version in file_versions(root, EMBEDDINGS).items()
    }


@dataclass(frozen=True)
class Columns:
    """The `meta_*` columns of an embeddings file, as the index has them."""

    kinds: dict[str, pa.DataType] = field(default_factory=dict)  # by the name in the index
    numbers: dict[str, int] = field(default_factory=dict)  # place in the file, by the name in the index
    notes: dict[str, str] = field(default_factory=dict)  # why renamed or left out, by the name in the file


@dataclass(frozen=True)
class Footers:
    """Metadata and columns of a partition's files, from their footers."""

    facts: dict[str, Any]  # metadata of the embeddings file
    kinds: dict[str, pa.DataType]  # of all columns that the index takes besides its own, by name
    notes: dict[str, str]  # see `Columns`

    @property
    def weights(self) -> tuple[str, int]:
        """Digest of the model's weights, and the length of its embeddings."""
        return str(self.facts["weights_digest"]), int(self.facts["dim"])


def read_footers(root: Root, key: str, derived: Iterable[str]) -> Footers:
    """Reads the footers of a partition's files.

    Raises:
        StorageError: One cannot be read, or this project did not write it.
    """
    path = f"{EMBEDDINGS}/{uri_of('', key)}"
    with root.open(path) as file:
        schema = pq.read_schema(file)
        facts = read_facts(schema.metadata)
        if not {"weights_digest", "dim"} <= facts.keys():
            raise ValueError("its metadata does not name the model that it was embedded with")
    columns = columns_of(schema)
    more = {each.name: _kind(each.type) for each in derived_schema(root, derived, facts)}
    kinds = columns.kinds | {name: kind for name, kind in more.items() if kind is not None}
    return Footers(facts, kinds, columns.notes)


def columns_of(schema: pa.Schema) -> Columns:
    """The `meta_*` columns of a file that the index takes, each under a name that LanceDB can hold."""
    columns = Columns()
    # Valid names first, so that they keep their name.
    for number, column in sorted(
        enumerate(schema), key=lambda each: each[1].name != valid_name(each[1].name)
    ):
        if not column.name.startswith(META_PREFIX):
            continue
        kind = _kind(column.type)
        if kind is None:
            columns.notes[column.name] = f"left out: the index takes no {column.type}"
            continue
        name = clean = valid_name(column.name)
        suffix = 2
        while name in columns.kinds:
            name, suffix = f"{clean}_{suffix}", suffix + 1
        if name != column.name:
            columns.notes[column.name] = f"is {name} in the index"
        columns.kinds[name], columns.numbers[name] = kind, number
    return columns


def valid_name(name: str) -> str:
    """The name with every character replaced that a LanceDB column cannot have."""
    return _NOT_IN_A_NAME.sub("_", name)


def _kind(kind: pa.DataType) -> pa.DataType | None:
    """Returns the index's type for a type of a column, or None if such columns are left out."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return _kind(kind.storage_type)
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        return pa.uint64() if kind == pa.uint64() else pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_null(kind) or pa.types.is_nested(kind) or is_binary(kind):
        return None
    return pa.string()


def widest(columns: Iterable[dict[str, pa.DataType]]) -> dict[str, pa.DataType]:
    """Returns the columns of some files, with types that can hold all values."""
    found: dict[str, pa.DataType] = {}
    for each in columns:
        for name, kind in each.items():
            found[name] = _wider(found.get(name, kind), kind)
    return found


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def schema_of(columns: dict[str, pa.DataType], facts: dict[str, Any], metadata: bytes) -> pa.Schema:
    """The index's schema: its own columns and others, the dimension of the model's facts, and JSON."""
    vector = pa.field(VECTOR, pa.list_(pa.float32(), int(facts["dim"])))
    meta = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema([*OWN, vector, *meta], metadata={METADATA_KEY: metadata})


def load_rows(root: Root, key: str, source: Source, schema: pa.Schema) -> tuple[pa.Table, dict[str, str]]:
    """Reads one partition as rows of the index; also returns why columns could not be converted, by name.

    Raises:
        StorageError: It cannot be read, or which input rows it holds is lost.
    """
    path = f"{EMBEDDINGS}/{uri_of('', key)}"
    notes: dict[str, str] = {}
    with storage_errors(f"{root.uri}/{path}", "read"):
        with root.open(path) as file:
            table = pq.read_table(file)
        count, columns = table.num_rows, columns_of(table.schema)
        rows = read_input_rows(root, key, table)
        if rows is None:
            raise StorageError(
                f"{root.uri}/{FAILURES}/{uri_of('', key)} is missing or not of this partition, and {key} was "
                "embedded by a version that kept the input rows only there. Repair it: boring-assets verify "
                "OUTPUT --input INPUT --repair."
            )
        derived = read_derived(root, source.derived, read_facts(table.schema.metadata), rows)
        own = {
            "partition": pa.repeat(pa.scalar(key), count),
            "load": pa.repeat(pa.scalar(f"{source.version} {uuid.uuid4().hex[:12]}"), count),
            ROW: rows,
            VECTOR: table["embedding"].cast(schema.field(VECTOR).type),
        }
        plain = {name: table[name] for name in table.column_names if not name.startswith(META_PREFIX)}
        further = {
            name: _converted(table.column(number), schema.field(name), notes)
            for name, number in columns.numbers.items()
            if name in schema.names
        }
        return pa.table(in_order(schema, count, own, derived, further, plain), schema=schema), notes


def in_order(fields: Iterable[pa.Field], count: int, *sources: Mapping[str, Any]) -> list[Any]:
    """Returns a column for each field, from the first source that has it; nulls if none has."""
    found = ChainMap(*(dict(one) for one in sources))
    return [
        found[one.name].cast(one.type) if one.name in found else pa.nulls(count, one.type) for one in fields
    ]


def read_input_rows(root: Root, key: str, table: pa.Table) -> pa.Array | None:
    """Returns the input row of each of a partition's embeddings, int64 [n]; None if it is lost."""
    failed = None
    if ROW not in table.column_names:  # a file of an earlier version
        with (
            suppress(FileNotFoundError, pa.ArrowInvalid),
            root.fs.open(f"{root.path}/{FAILURES}/{uri_of('', key)}", "rb") as file,
        ):
            failed = pq.read_table(file, columns=[ROW])
    return input_rows(table, failed, read_facts(table.schema.metadata))


def _converted(values: pa.ChunkedArray, column: pa.Field, notes: dict[str, str]) -> pa.Array:
    """Returns a column in the index's type; nulls and a note if its values do not convert."""
    try:
        if isinstance(values.type, pa.UuidType):
            return pa.array([None if one is None else str(one) for one in values.to_pylist()], pa.string())
        if isinstance(values.type, pa.BaseExtensionType):
            storage = values.type.storage_type
            values = pa.chunked_array([chunk.storage for chunk in values.chunks], storage)
        return values.cast(column.type)
    except (pa.ArrowException, ValueError) as error:
        notes[column.name] = f"left out: its values are not {column.type} ({str(error)[:200]})"
        return pa.nulls(len(values), column.type)
