"""The output's parquet files: listing, metadata and encoding."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.output.schema import read_facts
from boring_assets.storage.errors import storage_error
from boring_assets.storage.files import version_of, write_bytes
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, FAILURES
from partitions.shards import SUFFIX

__all__ = ["EMBEDDINGS", "FAILURES", "committed_facts", "file_versions", "to_parquet", "write_table"]


def committed_facts(root: Root, path: str) -> dict[str, Any]:
    """Reads the metadata of a committed file.

    Args:
        root: The output.
        path: The file's path below it.

    Returns:
        The facts; empty where there is no file, or none that this project wrote.

    Raises:
        StorageError: The output cannot be read.
    """
    try:
        with root.fs.open(f"{root.path}/{path}", "rb") as file:
            return read_facts(pq.read_schema(file).metadata)
    except (FileNotFoundError, pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    except Exception as error:
        if type(error) is OSError and error.errno is None:  # how pyarrow says that a footer is damaged
            return {}
        raise storage_error(error, f"{root.uri}/{path}", "read") from error


def file_versions(root: Root, folder: str) -> dict[str, str]:
    """Lists the parquet files of a folder of the output.

    Args:
        root: The output.
        folder: `image_embeddings`, say.

    Returns:
        The version of each partition's file, by key: its ETag, or size, time and inode.

    Raises:
        StorageError: The output cannot be listed.
    """
    base = f"{root.path}/{folder}"
    try:
        root.fs.invalidate_cache()
        found = root.fs.find(base, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{folder}", "list") from error
    return {
        path[len(base) + 1 :].removesuffix(SUFFIX): version_of(info)
        for path, info in sorted(found.items())
        if path.endswith(SUFFIX)
    }


def write_table(root: Root, path: str, table: pa.Table) -> int:
    """Writes a parquet file whole or not at all.

    Args:
        root: The output.
        path: The file's path below it.
        table: Its rows.

    Returns:
        Its size in bytes.

    Raises:
        StorageError: It cannot be written; what was there before is untouched.
    """
    data = to_parquet(table)
    write_bytes(root, path, data)
    return data.size


def to_parquet(table: pa.Table) -> pa.Buffer:
    """Encodes a table as a parquet file, each page with a checksum."""
    sink = pa.BufferOutputStream()
    # Vectors do not compress, and trying costs more time than writing them.
    plain = "embedding.list.element"
    rest = [name for name in table.column_names if name != "embedding"]
    pq.write_table(
        table,
        sink,
        row_group_size=50_000,
        compression={**dict.fromkeys(rest, "zstd"), plain: "none"} if _flat(table.schema) else "zstd",
        use_dictionary=rest,
        write_statistics=rest,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _flat(schema: pa.Schema) -> bool:
    """Whether each column but the vectors is one leaf, so that its name is also its path in parquet."""
    return not any(pa.types.is_nested(field.type) for field in schema if field.name != "embedding")
