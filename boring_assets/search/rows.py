"""Rows of the index: what is taken of an embeddings file, and in which types.

Shards need not agree on the types of their further columns. Numbers become int64 or float64, dates and other
texts become strings, and nested and binary columns are left out. Where two shards differ the wider type wins.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.output.files import EMBEDDINGS
from boring_assets.output.schema import META_PREFIX, METADATA_KEY, read_facts
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root
from partitions.shards import uri_of

OWN = (
    pa.field("partition", pa.string()),
    pa.field("load", pa.string()),
    pa.field("row", pa.int64()),
    pa.field("key", pa.string()),
    pa.field("url", pa.string()),
    pa.field("caption", pa.string()),
)
"""The index's own columns. `load` is the version of the file that a row came from, and which load of it."""
VECTOR = "vector"


@dataclass(frozen=True)
class Peek:
    """What the footer of an embeddings file says.

    Attributes:
        facts: How it was made.
        columns: Its `meta_*` columns that the index takes, in the index's types.
    """

    facts: dict[str, Any]
    columns: dict[str, pa.DataType]

    @property
    def weights(self) -> tuple[str, int]:
        """Digest of the model's weights, and the length of its embeddings."""
        return str(self.facts["weights_digest"]), int(self.facts["dim"])


def peek(root: Root, key: str) -> Peek:
    """Reads a file's footer.

    Raises:
        StorageError: It cannot be read, or is none of ours.
    """
    path = f"{EMBEDDINGS}/{uri_of('', key)}"
    try:
        with root.fs.open(f"{root.path}/{path}", "rb") as file:
            schema = pq.read_schema(file)
            facts = read_facts(schema.metadata)
            if not {"weights_digest", "dim"} <= facts.keys():
                raise ValueError("its metadata does not say which model it was made by")
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{path}", "read") from error
    kinds = {field.name: _kind(field.type) for field in schema if field.name.startswith(META_PREFIX)}
    return Peek(facts, {name: kind for name, kind in kinds.items() if kind is not None})


def _kind(kind: pa.DataType) -> pa.DataType | None:
    """The index's type for a column's, or None where it takes no such column."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return pa.float64()
    if pa.types.is_null(kind) or pa.types.is_nested(kind) or _is_binary(kind):
        return None
    return pa.string()


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def widest(columns: Iterable[dict[str, pa.DataType]]) -> dict[str, pa.DataType]:
    """The columns of some files in types that hold all of their values."""
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
    """The index's schema.

    Args:
        columns: The `meta_*` columns.
        facts: Of any file of the model.
        metadata: JSON that goes with the table.
    """
    vector = pa.field(VECTOR, pa.list_(pa.float32(), int(facts["dim"])))
    meta = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema([*OWN, vector, *meta], metadata={METADATA_KEY: metadata})


def load_rows(root: Root, key: str, version: str, schema: pa.Schema) -> pa.Table:
    """Reads one embeddings file as rows of the index.

    Args:
        root: The output.
        key: The partition key.
        version: The file's version, as it was listed.
        schema: The index's.

    Raises:
        StorageError: It cannot be read.
    """
    path = f"{EMBEDDINGS}/{uri_of('', key)}"
    try:
        with root.fs.open(f"{root.path}/{path}", "rb") as file:
            table = pq.read_table(file)
        count = table.num_rows
        made = {
            "partition": pa.repeat(pa.scalar(key), count),
            "load": pa.repeat(pa.scalar(f"{version} {uuid.uuid4().hex[:12]}"), count),
            "row": pa.array(range(count), pa.int64()),
        }
        arrays = []
        for field in schema:
            name = "embedding" if field.name == VECTOR else field.name
            if name in made:
                arrays.append(made[name])
            elif name in table.column_names:
                arrays.append(table[name].cast(field.type))
            else:
                arrays.append(pa.nulls(count, field.type))
        return pa.table(arrays, schema=schema)
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{path}", "read") from error
