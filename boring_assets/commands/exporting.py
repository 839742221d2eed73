"""`boring-assets export`: writes the embeddings in the formats of other tools.

Every format is written in batches: memory does not grow with the dataset.
"""

import json
import os
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boring_assets import __version__
from boring_assets.commands.export_source import Export
from boring_assets.commands.export_webdataset import WebdatasetWriter
from boring_assets.errors import SettingsError
from boring_assets.output.schema import ROW
from boring_assets.search.rows import valid_name
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_error
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import open_root
from partitions.own_files import EXPORT_MARKER

COMPLETE_MARKER = "export.json"
"""Written last: it marks an export as complete."""
_TEXT = 1000
_HF_CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
CLIP embeddings by boring_assets.
"""


def _header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Writes the header of a `.npy` file (NEP 1)."""
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
    """`{partition}.npz` with the arrays `embeddings`, `row`, `key`, `url` and `caption`.

    A null becomes an empty text. In a NumPy array every text takes the space of the longest one, so texts are
    cut at 1,000 characters.
    """
    for part in export.parts:
        texts: dict[str, list[str]] = {"key": [], "url": [], "caption": []}
        rows = [np.empty(0, np.int64)]
        with export.writing(f"{part.key}.npz") as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                _header(member, (part.rows, export.dim), export.dtype)
                for batch in export.batches(part):
                    member.write(export.vectors(batch))
                    rows.append(batch[ROW].to_numpy())
                    for name, values in texts.items():
                        short = pc.utf8_slice_codeunits(batch[name].fill_null(""), 0, _TEXT)
                        values.extend(short.to_pylist())
            with archive.open("row.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.concatenate(rows), allow_pickle=False)
            for name, values in texts.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(values, np.str_), allow_pickle=False)


def to_lance(export: Export) -> None:
    """A LanceDB database with the table `image_embeddings`."""
    try:
        import lancedb
    except ImportError as error:
        raise SettingsError('Lance needs lancedb: pip install "boring_assets[lance]".') from error
    # Lance's own S3 client needs an option for plain HTTP.
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options = {"allow_http": "true"} if plain and export.dest.uri.startswith("s3") else None
    # LanceDB cannot hold a column whose name has a dot or a backtick.
    schema = pa.schema([field.with_name(valid_name(field.name)) for field in export.schema])
    rows = (
        pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        for part in export.parts
        for batch in export.batches(part)
    )
    reader = pa.RecordBatchReader.from_batches(schema, rows)
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


WEBDATASET = "webdataset"
FORMATS: dict[str, Callable[[Export], None]] = {
    "clip-retrieval": to_clip_retrieval,
    "npy": to_npy,
    "npz": to_npz,
    "lance": to_lance,
    "hf": to_hf,
}


def export_all(
    output_dir: str,
    dest_dir: str,
    layout: str,
    *,
    where: str = "",
    no_near_duplicates: bool = False,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Writes an output, or a part of it, in another format; returns the content of `export.json`.

    Args:
        output_dir: URI or path of the output.
        dest_dir: URI or path of a new folder.
        layout: One of `FORMATS`, or `webdataset`.
        where: A condition in SQL; only rows that fulfil it are exported.
        no_near_duplicates: Export only one row of each group of near duplicates.
        settings: Where the images are, for `webdataset`.

    Raises:
        StorageError: One of the two cannot be read or written, or `dest_dir` is not empty.
        SettingsError: The partitions do not fit in one table, the condition is wrong or no row fulfils it,
            `webdataset` has no input, or a package is missing.
    """
    images = WebdatasetWriter(settings or Settings()) if layout == WEBDATASET else None
    export = Export(
        open_root(output_dir), open_root(dest_dir), where=where, no_near_duplicates=no_near_duplicates
    )
    marker = json.dumps({"format": layout}).encode()
    write_bytes(export.dest, EXPORT_MARKER, marker)
    left_out = images.write(export) if images else FORMATS[layout](export)
    facts = {
        "format": layout,
        "rows": export.rows,
        "partitions": len(export.parts),
        "dim": export.dim,
        "dtype": export.dtype.name,
        "boring_assets_version": __version__,
    }
    if where or no_near_duplicates:
        facts |= {"of_rows": export.of_rows, "where": where, "no_near_duplicates": no_near_duplicates}
    if images:
        facts |= {"rows": export.rows - sum((left_out or {}).values()), "left_out": left_out}
    write_bytes(export.dest, COMPLETE_MARKER, json.dumps(facts, indent=2).encode())
    if images:  # other exports are not read as input; a complete webdataset export is
        export.dest.fs.rm_file(f"{export.dest.path}/{EXPORT_MARKER}")
    return facts
