"""`boring-assets export`: writes the embeddings in the formats of other tools.

Every format is written in batches: memory does not grow with the dataset.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boring_assets import __version__
from boring_assets.commands.export_source import Export, Part
from boring_assets.commands.export_webdataset import to_webdataset
from boring_assets.output.schema import ROW
from boring_assets.search.lance import connect
from boring_assets.search.rows import valid_name
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import open_root
from partitions.own_files import EXPORT_MARKER
from resources.source import ShardSource

_COMPLETE_MARKER = "export.json"
"""Written last: it marks an export as complete."""
_TEXT = 1000
_HF_CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
CLIP embeddings by boring_assets.
"""


def to_clip_retrieval(export: Export) -> None:
    """`img_emb/img_emb_N.npy` and `metadata/metadata_N.parquet`, as `clip-retrieval inference` does."""
    width = len(str(len(export.parts)))
    for number, part in enumerate(part for part in export.parts if part.rows):
        name = f"{number:0{width}}"
        _write_arrays(export, [part], f"img_emb/img_emb_{name}.npy", f"metadata/metadata_{name}.parquet")


def to_npy(export: Export) -> None:
    """`embeddings.npy`, one array of all rows, and `rows.parquet` with their other columns in that order."""
    _write_arrays(export, export.parts, "embeddings.npy", "rows.parquet")


def _write_arrays(export: Export, parts: list[Part], array: str, table: str) -> None:
    shape = (sum(part.rows for part in parts), export.dim)
    facts = {"descr": np.lib.format.dtype_to_descr(export.dtype), "fortran_order": False, "shape": shape}
    with export.writing(array) as file, export.table(table, vectors=False) as writer:
        np.lib.format.write_array_header_1_0(file, facts)
        for part in parts:
            for batch in export.batches(part):
                file.write(export.vectors(batch).tobytes())
                writer.write_batch(batch.drop_columns(["embedding"]))


def to_npz(export: Export) -> None:
    """`{partition}.npz` with the arrays `embeddings`, `row`, `key`, `url` and `caption`.

    A null becomes an empty text. In a NumPy array every text takes the space of the longest one, so texts are
    cut at 1,000 characters.
    """
    for part in export.parts:
        table = export.read(part)
        texts = {name: table[name].fill_null("") for name in ("key", "url", "caption")}
        arrays: dict[str, Any] = {
            name: np.array(pc.utf8_slice_codeunits(column, 0, _TEXT).to_pylist(), np.str_)
            for name, column in texts.items()
        }
        with export.writing(f"{part.key}.npz") as file:
            np.savez(file, embeddings=export.vectors(table), row=table[ROW].to_numpy(), **arrays)


def to_lance(export: Export) -> None:
    """A LanceDB database with the table `image_embeddings`."""
    # LanceDB cannot hold a column whose name has a dot or a backtick.
    schema = pa.schema([field.with_name(valid_name(field.name)) for field in export.schema])
    rows = (
        pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        for part in export.parts
        for batch in export.batches(part)
    )
    reader = pa.RecordBatchReader.from_batches(schema, rows)
    with storage_errors(export.dest.uri, "write", (OSError, RuntimeError, ValueError)):
        connect(export.dest, "").create_table("image_embeddings", reader, mode="create")


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
"""All but `webdataset`, which also reads the input."""


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
        SettingsError: The partitions do not fit in one table, the condition is wrong or no row matches it,
            `webdataset` has no input, or a package is missing.
    """
    settings, with_images = settings or Settings(), layout == "webdataset"
    if with_images:
        ShardSource.from_settings(settings).root()  # raises where no input is set
    export = Export(
        open_root(output_dir), open_root(dest_dir), where=where, no_near_duplicates=no_near_duplicates
    )
    marker = json.dumps({"format": layout}).encode()
    write_bytes(export.dest, EXPORT_MARKER, marker)
    facts: dict[str, Any] = {
        "format": layout,
        "rows": export.rows,
        "partitions": len(export.parts),
        "dim": export.dim,
        "dtype": export.dtype.name,
        "boring_assets_version": __version__,
    }
    if where or no_near_duplicates:
        facts |= {"of_rows": export.of_rows, "where": where, "no_near_duplicates": no_near_duplicates}
    if with_images:
        left_out = to_webdataset(export, settings)
        facts |= {"rows": export.rows - sum(left_out.values()), "left_out": left_out}
    else:
        FORMATS[layout](export)
    write_bytes(export.dest, _COMPLETE_MARKER, json.dumps(facts, indent=2).encode())
    if with_images:  # other exports are not read as input; a complete webdataset export is
        export.dest.fs.rm_file(f"{export.dest.path}/{EXPORT_MARKER}")
    return facts
