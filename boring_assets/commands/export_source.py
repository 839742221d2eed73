"""What an export reads from and writes to, as a stream of batches: memory does not grow with the dataset."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.errors import SettingsError, StorageError
from boring_assets.output.files import EMBEDDINGS, FAILURES
from boring_assets.output.schema import ROW, input_rows, read_facts
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root
from partitions.own_files import is_marker

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Part:
    """One committed partition.

    Attributes:
        key: Its partition key.
        path: Path of its embeddings file.
        rows: Its rows.
        schema: Their columns.
    """

    key: str
    path: str
    rows: int
    schema: pa.Schema


class Export:
    """An output to read from and a place to write to."""

    def __init__(self, output: Root, dest: Root) -> None:
        """Reads every committed file's footer.

        Args:
            output: The output to export.
            dest: Where to; must hold nothing yet.

        Raises:
            StorageError: Nothing is committed, it cannot be read, or `dest` is not empty.
            SettingsError: The partitions do not fit in one table.
        """
        self._output, self.dest = output, dest
        if any(not is_marker(path) for path in _files(dest, "")):
            raise StorageError(f"{dest.uri} is not empty. Give a new folder, or remove what is there.")
        paths = [path for path in _files(output, EMBEDDINGS) if path.endswith(".parquet")]
        if not paths:
            raise StorageError(f"Nothing is committed below {output.uri}. Embed something first.")
        self._schemas: dict[pa.Schema, pa.Schema] = {}
        with ThreadPoolExecutor(8, "footer") as pool:
            self.parts = list(pool.map(self._part, paths))
        self.rows = sum(part.rows for part in self.parts)
        schema = self._unify()
        if ROW not in schema.names:  # all of it was embedded by an earlier version
            schema = schema.append(pa.field(ROW, pa.int64()))
        self.schema = schema.append(pa.field("partition", pa.string()))
        self.dim: int = self.schema.field("embedding").type.list_size
        kind = self.schema.field("embedding").type.value_type
        self.dtype = np.dtype(kind.to_pandas_dtype()).newbyteorder("<")

    def _part(self, path: str) -> Part:
        key = path.removeprefix(f"{self._output.path}/{EMBEDDINGS}/").removesuffix(".parquet")
        with self._reading(path) as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow.remove_metadata()
            # Nearly all partitions share one schema; a copy for each would be most of the memory.
            return Part(key, path, parquet.metadata.num_rows, self._schemas.setdefault(schema, schema))

    def _unify(self) -> pa.Schema:
        """All columns of all partitions; one that lacks a column has nulls in it."""
        kinds = {part.schema.field("embedding").type: part.key for part in self.parts}
        if len(kinds) > 1:
            raise SettingsError(
                f"{self._output.uri} holds embeddings of several kinds: "
                f"{', '.join(f'{kind} in {key}' for kind, key in kinds.items())}. "
                "Embed with one model and one output type, by `boring-assets embed --redo`."
            )
        try:
            in_order = list(dict.fromkeys(part.schema for part in self.parts))
            return pa.unify_schemas(in_order, promote_options="permissive")
        except pa.ArrowException as error:
            raise SettingsError(
                f"The partitions of {self._output.uri} have columns of one name and different types: {error}"
            ) from error

    def batches(self, part: Part) -> Iterator[pa.RecordBatch]:
        """A partition's rows, with the columns of all.

        Raises:
            StorageError: Its file cannot be read.
        """
        rows, start = self._input_rows(part), 0
        with self._reading(part.path) as file:
            for batch in pq.ParquetFile(file, buffer_size=8 * 2**20).iter_batches(_BATCH_ROWS):
                own = {
                    "partition": pa.repeat(pa.scalar(part.key), batch.num_rows),
                    ROW: rows.slice(start, batch.num_rows),
                }
                start += batch.num_rows
                columns = []
                for field in self.schema:
                    if field.name in own:
                        columns.append(own[field.name])
                    elif field.name in part.schema.names:
                        columns.append(batch[field.name].cast(field.type))
                    else:
                        columns.append(pa.nulls(batch.num_rows, field.type))
                yield pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _input_rows(self, part: Part) -> pa.Array:
        """The input row of each of a partition's embeddings; nulls where that is lost."""
        failed = None
        names = [ROW] if ROW in part.schema.names else []
        with self._reading(part.path) as file:
            embedded = pq.read_table(file, columns=names)
        if not names:
            path = part.path.replace(
                f"{self._output.path}/{EMBEDDINGS}/", f"{self._output.path}/{FAILURES}/", 1
            )
            if self._output.fs.exists(path):
                with self._reading(path) as file:
                    failed = pq.read_table(file, columns=[ROW])
        rows = input_rows(embedded, failed, read_facts(embedded.schema.metadata))
        return pa.nulls(part.rows, pa.int64()) if rows is None else rows

    def vectors(self, batch: pa.RecordBatch) -> bytes:
        """A batch's embeddings as a C array of [rows, dim]."""
        flat = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(flat, self.dtype).tobytes()

    @contextmanager
    def _reading(self, path: str) -> Iterator[IO[bytes]]:
        try:
            with self._output.fs.open(path, "rb") as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise storage_error(error, path, "read") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A new file of the export.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            with self.dest.fs.open(f"{self.dest.path}/{name}", "wb") as file:
                yield file
        except OSError as error:
            raise storage_error(error, f"{self.dest.uri}/{name}", "write") from error

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
