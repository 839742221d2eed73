"""Reads and writes the data of an export in batches: memory does not grow with the dataset."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.commands.export_selection import Condition, read_groups
from boring_assets.errors import SettingsError, StorageError
from boring_assets.output.derived import Derived, derived_schema, read_derived
from boring_assets.output.schema import ROW, read_facts
from boring_assets.search.rows import in_order, read_input_rows
from boring_assets.storage.errors import storage_error, storage_errors
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, is_marker

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Part:
    """One committed partition."""

    key: str
    path: str  # of its embeddings file
    rows: int  # that are exported
    schema: pa.Schema  # of its embeddings file
    derived: pa.Schema  # columns of its labels and scores
    chosen: np.ndarray | None = None  # packed bits, which of its rows are exported; None is all


class Export:
    """An output to read from and a place to write to.

    Attributes:
        parts: The partitions that have rows to export.
        rows: Rows to export.
        of_rows: Rows of the output.
        schema: Their columns: those of the embeddings files, `partition`, and labels and scores.
        dim: Length of an embedding.
        dtype: Type of its numbers.
    """

    def __init__(
        self, output: Root, dest: Root, *, where: str = "", no_near_duplicates: bool = False
    ) -> None:
        """Reads every committed file's footer, and the columns that the condition is about.

        The arguments are those of `export_all`.

        Raises:
            StorageError: Nothing is committed, it cannot be read, or `dest` is not empty.
            SettingsError: The partitions do not fit in one table, or no row matches the condition.
        """
        self.output, self.dest = output, dest
        if any(not is_marker(path) for path in _files(dest, "")):
            raise StorageError(f"{dest.uri} is not empty. Give a new folder, or remove what is there.")
        paths = [path for path in _files(output, EMBEDDINGS) if path.endswith(".parquet")]
        if not paths:
            raise StorageError(f"Nothing is committed below {output.uri}. Embed something first.")
        self._schemas: dict[pa.Schema, pa.Schema] = {}
        self._derived = Derived.of(output)
        with ThreadPoolExecutor(8, "footer") as pool:
            self.parts = list(pool.map(self._part, paths))
        self.of_rows = sum(part.rows for part in self.parts)
        schema = self._unify()
        if ROW not in schema.names:  # an earlier version embedded the whole output
            schema = schema.append(pa.field(ROW, pa.int64()))
        derived = pa.unify_schemas([part.derived for part in self.parts], promote_options="permissive")
        self.schema = pa.schema([*schema, pa.field("partition", pa.string()), *derived])
        self.dim: int = self.schema.field("embedding").type.list_size
        kind = self.schema.field("embedding").type.value_type
        self.dtype = np.dtype(kind.to_pandas_dtype()).newbyteorder("<")
        if where or no_near_duplicates:
            self._select(where, no_near_duplicates)
        self.rows = sum(part.rows for part in self.parts)

    def _part(self, path: str) -> Part:
        key = path.removeprefix(f"{self.output.path}/{EMBEDDINGS}/").removesuffix(".parquet")
        with self._reading(path) as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            facts = read_facts(schema.metadata)
            schemas = schema.remove_metadata(), derived_schema(self.output, self._derived.paths(key), facts)
            # Nearly all partitions share one schema; a copy for each would be most of the memory.
            own, derived = (self._schemas.setdefault(each, each) for each in schemas)
            return Part(key, path, parquet.metadata.num_rows, own, derived)

    def _select(self, where: str, no_near_duplicates: bool) -> None:
        """Keeps the chosen rows of each part, and the parts that have any."""
        groups = read_groups(self.output) if no_near_duplicates else {}
        columns = self.schema.remove(self.schema.get_field_index("embedding"))
        condition = Condition(where, columns) if where else None
        names = {*(condition.names if condition else ()), *((ROW, "key") if groups else ())}

        def choose(part: Part) -> tuple[np.ndarray, list[tuple[int, int]]]:
            """Returns the rows that fulfil the condition, and the places and groups of near duplicates."""
            chosen, places, start = np.ones(part.rows, bool), [], 0
            grouped = groups.get(part.key, {})
            for batch in self._read(part, names):
                if condition:
                    chosen[start : start + batch.num_rows] = condition.holds(batch)
                if grouped:
                    rows = zip(batch[ROW].to_pylist(), batch["key"].to_pylist(), strict=True)
                    found = ((start + at, grouped.get(row)) for at, row in enumerate(rows))
                    places += [(at, group) for at, group in found if group is not None and chosen[at]]
                start += batch.num_rows
            return np.packbits(chosen), places

        with ThreadPoolExecutor(8, "select") as pool:
            answers = pool.map(choose, self.parts)
            parts, seen = [], set()
            for part, (packed, places) in zip(self.parts, answers, strict=True):
                chosen = np.unpackbits(packed, count=part.rows)
                for at, group in places:
                    chosen[at] = group not in seen
                    seen.add(group)
                if chosen.any():
                    parts.append(replace(part, rows=int(chosen.sum()), chosen=np.packbits(chosen)))
        if not parts:
            raise SettingsError(
                f"No row of {self.output.uri} matches the filter {where!r}. There are {self.of_rows:,} rows."
            )
        self.parts = parts

    def _unify(self) -> pa.Schema:
        """Returns all columns of all partitions; a partition without a column has nulls."""
        kinds = {part.schema.field("embedding").type: part.key for part in self.parts}
        if len(kinds) > 1:
            raise SettingsError(
                f"{self.output.uri} holds embeddings of several kinds: "
                f"{', '.join(f'{kind} in {key}' for kind, key in kinds.items())}. "
                "Embed with one model and one output type, by `boring-assets embed --redo`."
            )
        try:
            in_order = list(dict.fromkeys(part.schema for part in self.parts))
            return pa.unify_schemas(in_order, promote_options="permissive")
        except pa.ArrowException as error:
            raise SettingsError(
                f"The partitions of {self.output.uri} have columns of one name and different types: {error}. "
                "Read the output as parquet, or embed shards of each kind into an output of their own."
            ) from error

    def batches(self, part: Part) -> Iterator[pa.RecordBatch]:
        """A partition's rows that are exported, with the columns of all.

        Raises:
            StorageError: Its file cannot be read.
        """
        chosen = None if part.chosen is None else np.unpackbits(part.chosen).astype(bool)
        start = 0
        for batch in self._read(part, set(self.schema.names)):
            end = start + batch.num_rows
            wanted = batch if chosen is None else batch.filter(pa.array(chosen[start:end]))
            start = end
            if wanted.num_rows:
                yield wanted

    def read(self, part: Part) -> pa.Table:
        """Returns a partition's rows that are exported, at once."""
        return pa.Table.from_batches(self.batches(part), self.schema)

    def _read(self, part: Part, names: set[str]) -> Iterator[pa.RecordBatch]:
        """All of a partition's rows with some columns, in batches."""
        fields = [field for field in self.schema if field.name in names]
        in_file = [name for name in part.schema.names if name in {*names, "key"}]
        rows, start = self._input_rows(part), 0
        with self._reading(part.path) as file:
            parquet = pq.ParquetFile(file, buffer_size=8 * 2**20)
            facts = read_facts(parquet.schema_arrow.metadata)
            derived = read_derived(self.output, self._derived.paths(part.key), facts, rows)
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=in_file):
                count = batch.num_rows
                own = {name: column.slice(start, count) for name, column in derived.items()}
                own |= {"partition": pa.repeat(pa.scalar(part.key), count), ROW: rows.slice(start, count)}
                start += count
                in_batch = dict(zip(batch.schema.names, batch.columns, strict=True))
                columns = in_order(fields, count, own, in_batch)
                yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))

    def _input_rows(self, part: Part) -> pa.Array:
        """Returns the input row of each of a partition's embeddings; nulls if it is lost."""
        with self._reading(part.path) as file:
            embedded = pq.read_table(file, columns=[ROW] if ROW in part.schema.names else [])
            rows = read_input_rows(self.output, part.key, embedded)
        return pa.nulls(part.rows, pa.int64()) if rows is None else rows

    def vectors(self, rows: pa.RecordBatch | pa.Table) -> np.ndarray:
        """Returns the embeddings of some rows, [rows, dim]."""
        column = rows["embedding"]
        flat = (column.combine_chunks() if isinstance(rows, pa.Table) else column).flatten()
        return flat.to_numpy(zero_copy_only=False).astype(self.dtype, copy=False).reshape(-1, self.dim)

    @contextmanager
    def _reading(self, path: str) -> Iterator[IO[bytes]]:
        kinds = (OSError, pa.ArrowException)
        with storage_errors(path, "read", kinds), self.output.fs.open(path, "rb") as file:
            yield file

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A new file of the export.

        Raises:
            StorageError: It cannot be written.
        """
        path = f"{self.dest.path}/{name}"
        with (
            storage_errors(f"{self.dest.uri}/{name}", "write", OSError),
            self.dest.fs.open(path, "wb") as file,
        ):
            yield file

    @contextmanager
    def table(self, name: str, *, vectors: bool) -> Iterator[pq.ParquetWriter]:
        """A new parquet file, with or without the embeddings."""
        schema = self.schema if vectors else self.schema.remove(self.schema.get_field_index("embedding"))
        with self.writing(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield writer


def _files(root: Root, folder: str) -> list[str]:
    try:
        return sorted(root.fs.find(f"{root.path}/{folder}".rstrip("/")))
    except FileNotFoundError:
        return []
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{folder}", "list") from error
