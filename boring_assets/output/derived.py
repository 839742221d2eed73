"""Files beside an embeddings file with further columns of its rows: `clip_scores` and `image_labels`.

Each has a row for each embedding. Its metadata says which version of the embeddings file it was computed
from; a file that was computed from another version is not used.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from boring_assets.output.files import committed_facts, file_versions
from boring_assets.output.schema import FAILURES_DIGEST, ROW, read_facts
from boring_assets.storage.root import Root
from partitions.own_files import LABELS, SCORES
from partitions.shards import uri_of

DERIVED = (SCORES, LABELS)
_IDENTITY = ("model", "pretrained", "weights_digest", "precision", "dtype", "source_version", "embedded")


def source_facts(embedded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that a derived file stores about its embeddings file, whose metadata is given."""
    # Two files of one shard with the same number of rows differ in their failures.
    return {name: embedded.get(name) for name in (*_IDENTITY, FAILURES_DIGEST)}


def belongs_to(facts: Mapping[str, Any], embedded: Mapping[str, Any]) -> bool:
    """Returns whether a derived file was computed from an embeddings file, by the metadata of both."""
    wanted = source_facts(embedded)
    return bool(facts) and {name: facts.get(name) for name in wanted} == wanted


@dataclass(frozen=True)
class Derived:
    """The derived files of an output.

    Attributes:
        versions: Version of each partition's file by key, for each folder of `DERIVED`.
    """

    versions: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, root: Root) -> "Derived":
        """Lists the derived files of an output.

        Raises:
            StorageError: It cannot be listed.
        """
        return cls({folder: file_versions(root, folder) for folder in DERIVED})

    def version(self, key: str) -> str:
        """Returns the versions of all derived files of a partition; empty if it has none."""
        found = [f"{folder}={files[key]}" for folder, files in self.versions.items() if key in files]
        return " ".join(found)

    def paths(self, key: str) -> Iterable[str]:
        """The paths of a partition's derived files below the output."""
        return [f"{folder}/{uri_of('', key)}" for folder, files in self.versions.items() if key in files]


def derived_schema(root: Root, paths: Iterable[str], embedded: Mapping[str, Any]) -> pa.Schema:
    """The columns that a partition's derived files add.

    Raises:
        StorageError: A file cannot be read.
    """
    found: list[pa.Field] = []
    for path in paths:
        with root.open(path) as file:
            schema = pq.read_schema(file)
        if belongs_to(read_facts(schema.metadata), embedded):
            found += _added(schema)
    return pa.schema(found)


def read_derived(
    root: Root, paths: Iterable[str], embedded: Mapping[str, Any], rows: pa.Array
) -> dict[str, pa.Array]:
    """Reads the columns that a partition's derived files add.

    Args:
        root: The output.
        paths: See `Derived.paths`.
        embedded: Metadata of the partition's embeddings file.
        rows: int64 [n], the input row of each embedding.

    Returns:
        Each column in the order of the embeddings; null in a row that the derived file lacks.

    Raises:
        StorageError: A file cannot be read.
    """
    columns: dict[str, pa.Array] = {}
    for path in paths:
        if not belongs_to(committed_facts(root, path), embedded):
            continue
        with root.open(path) as file:
            parquet = pq.ParquetFile(file)
            names = [field.name for field in _added(parquet.schema_arrow)]
            table = parquet.read(columns=[ROW, *names]).combine_chunks()
        places = pc.index_in(rows, value_set=table[ROW].combine_chunks())
        columns |= {name: table[name].combine_chunks().take(places) for name in names}
    return columns


def _added(schema: pa.Schema) -> list[pa.Field]:
    """The columns of a derived file that others show: not `row` and `key`, and no vectors."""
    return [
        field for field in schema if field.name not in (ROW, "key") and not pa.types.is_nested(field.type)
    ]
