"""`boring-assets export`: what is committed, in the layouts of other tools.

Every layout is written as a stream, batch by batch: memory does not grow with the dataset.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from boring_assets import __version__
from boring_assets.errors import SettingsError, StorageError
from boring_assets.wording import some
from resources.embeddings_io import EMBEDDINGS
from resources.files import write_bytes
from resources.storage import Root, open_root, storage_error

MARK = "export.json"
"""Written last: an export with it is whole."""
_BATCH_ROWS = 8192
_TEXT = 1000
_HF_CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
CLIP embeddings, made by boring_assets.
"""


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
        if _files(dest, ""):
            raise StorageError(f"{dest.uri} is not empty. Give a new folder, or remove what is there.")
        paths = [path for path in _files(output, EMBEDDINGS) if path.endswith(".parquet")]
        if not paths:
            raise StorageError(f"Nothing is committed below {output.uri}. Embed something first.")
        self._schemas: dict[pa.Schema, pa.Schema] = {}
        with ThreadPoolExecutor(8, "footer") as pool:
            self.parts = list(pool.map(self._part, paths))
        self.rows = sum(part.rows for part in self.parts)
        self.schema = self._unify().append(pa.field("partition", pa.string()))
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
        with self._reading(part.path) as file:
            for batch in pq.ParquetFile(file, buffer_size=8 * 2**20).iter_batches(_BATCH_ROWS):
                columns = [
                    batch[field.name].cast(field.type)
                    if field.name in part.schema.names
                    else pa.nulls(batch.num_rows, field.type)
                    for field in self.schema
                ]
                columns[-1] = pa.repeat(pa.scalar(part.key), batch.num_rows)
                yield pa.RecordBatch.from_arrays(columns, schema=self.schema)

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


def _header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """The front of a `.npy` file (NEP 1)."""
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)


def to_clip_retrieval(export: Export) -> None:
    """`img_emb/img_emb_N.npy` and `metadata/metadata_N.parquet`, as `clip-retrieval inference` does."""
    width = len(str(len(export.parts)))
    for number, part in enumerate(part for part in export.parts if part.rows):
        name = f"{number:0{width}}"
        with (
            export.writing(f"img_emb/img_emb_{name}.npy") as file,
            export.table(f"metadata/metadata_{name}.parquet", vectors=False) as writer,
        ):
            _header(file, (part.rows, export.dim), export.dtype)
            for batch in export.batches(part):
                file.write(export.vectors(batch))
                writer.write_batch(batch.drop_columns(["embedding"]))


def to_npy(export: Export) -> None:
    """`embeddings.npy`, one array of all rows, and `rows.parquet` with their other columns in that order."""
    with (
        export.writing("embeddings.npy") as file,
        export.table("rows.parquet", vectors=False) as writer,
    ):
        _header(file, (export.rows, export.dim), export.dtype)
        for part in export.parts:
            for batch in export.batches(part):
                file.write(export.vectors(batch))
                writer.write_batch(batch.drop_columns(["embedding"]))


def to_npz(export: Export) -> None:
    """`{partition}.npz` with the arrays `embeddings`, `key`, `url` and `caption`; null is an empty text.

    NumPy gives each text of an array the room of the longest, so they are cut at 1,000 characters.
    """
    for part in export.parts:
        texts: dict[str, list[str]] = {"key": [], "url": [], "caption": []}
        with export.writing(f"{part.key}.npz") as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                _header(member, (part.rows, export.dim), export.dtype)
                for batch in export.batches(part):
                    member.write(export.vectors(batch))
                    for name, values in texts.items():
                        short = pc.utf8_slice_codeunits(batch[name].fill_null(""), 0, _TEXT)
                        values.extend(short.to_pylist())
            for name, values in texts.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(values, np.str_), allow_pickle=False)


def to_lance(export: Export) -> None:
    """A LanceDB database with the table `image_embeddings`."""
    try:
        import lancedb
    except ImportError as error:
        raise SettingsError('Lance needs lancedb: pip install "boring_assets[lance]".') from error
    # Lance has its own client of S3, which asks to be told that plain HTTP is meant.
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options = {"allow_http": "true"} if plain and export.dest.uri.startswith("s3") else None
    rows = (batch for part in export.parts for batch in export.batches(part))
    reader = pa.RecordBatchReader.from_batches(export.schema, rows)
    try:
        database = lancedb.connect(export.dest.uri, storage_options=options)
        database.create_table("image_embeddings", reader, mode="create")
    except (OSError, RuntimeError, ValueError) as error:
        raise storage_error(error, export.dest.uri, "write") from error


def to_hf(export: Export) -> None:
    """`data/train-N-of-M.parquet` and a card: a dataset repository, for `load_dataset` and the Hub."""
    with export.writing("README.md") as file:
        file.write(_HF_CARD.encode())
    for number, part in enumerate(export.parts):
        name = f"data/train-{number:05}-of-{len(export.parts):05}.parquet"
        with export.table(name, vectors=True) as writer:
            for batch in export.batches(part):
                writer.write_batch(batch)


FORMATS: dict[str, Callable[[Export], None]] = {
    "clip-retrieval": to_clip_retrieval,
    "npy": to_npy,
    "npz": to_npz,
    "lance": to_lance,
    "hf": to_hf,
}


def export_all(output_dir: str, dest_dir: str, layout: str) -> dict[str, Any]:
    """Writes an output in another layout.

    Args:
        output_dir: URI or path of the output.
        dest_dir: URI or path of a new folder.
        layout: One of `FORMATS`.

    Returns:
        What was written, as `export.json` has it.

    Raises:
        StorageError: One of the two cannot be read or written, or `dest_dir` is not empty.
        SettingsError: The partitions do not fit in one table, or a package is missing.
    """
    export = Export(open_root(output_dir), open_root(dest_dir))
    FORMATS[layout](export)
    facts = {
        "format": layout,
        "rows": export.rows,
        "partitions": len(export.parts),
        "dim": export.dim,
        "dtype": export.dtype.name,
        "boring_assets_version": __version__,
    }
    write_bytes(export.dest, MARK, json.dumps(facts, indent=2).encode())
    return facts


@click.command("export")
@click.argument("output_dir", metavar="OUTPUT")
@click.argument("dest_dir", metavar="DEST")
@click.option(
    "--format", "layout", required=True, type=click.Choice(list(FORMATS)), help="The layout.  [default: none]"
)
def export_command(output_dir: str, dest_dir: str, layout: str) -> None:
    """Writes the embeddings in another tool's layout.

    OUTPUT and DEST are paths or URIs. DEST must be empty; `export.json` appears in it when all is written.
    """
    facts = export_all(output_dir, dest_dir, layout)
    click.echo(f"{some(facts['rows'], 'embedding')} of {some(facts['partitions'], 'shard')} in {dest_dir}.")
