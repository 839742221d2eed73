"""The output's parquet files: listing, metadata and encoding."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.output.schema import read_facts
from boring_assets.storage.errors import storage_error
from boring_assets.storage.files import version_of, write_bytes
from boring_assets.storage.root import Root
from partitions.listing import list_files
from partitions.shards import SUFFIX


def committed_facts(root: Root, path: str) -> dict[str, Any]:
    """Returns the metadata of a committed file; empty where this project wrote no such file.

    Raises:
        StorageError: The output cannot be read.
    """
    try:
        with root.fs.open(f"{root.path}/{path}", "rb") as file:
            return read_facts(pq.read_schema(file).metadata)
    except (FileNotFoundError, pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    except Exception as error:
        if type(error) is OSError and error.errno is None:  # pyarrow's error for a damaged footer
            return {}
        raise storage_error(error, f"{root.uri}/{path}", "read") from error


def file_versions(root: Root, folder: str) -> dict[str, str]:
    """Returns the version of each parquet file in a folder of the output, by partition key.

    The version is the ETag, or size, time and inode.

    Args:
        root: The output.
        folder: `image_embeddings`, say.

    Raises:
        StorageError: The output cannot be listed.
    """
    start = len(f"{root.path}/{folder}/")
    listed = _list(root, folder, _local_version)
    return {path[start:].removesuffix(SUFFIX): version for path, version in sorted(listed)}


def file_keys(root: Root, folder: str) -> set[str]:
    """Lists the partitions that have a parquet file in a folder of the output; see `file_versions`."""
    start = len(f"{root.path}/{folder}/")
    return {path[start:].removesuffix(SUFFIX) for path, _ in _list(root, folder, lambda entry: "")}


def _list(root: Root, folder: str, local_version: Callable[[os.DirEntry[str]], str]) -> list[tuple[str, str]]:
    """Path and version of each parquet file; fsspec's own listing takes five times the memory."""
    base = replace(root, uri=f"{root.uri}/{folder}", path=f"{root.path}/{folder}")
    try:
        if isinstance(root.fs, LocalFileSystem):
            return [(entry.path, local_version(entry)) for entry in _local_files(base.path)]
        if hasattr(root.fs, "call_s3"):
            listed = list_files(base, lambda path: path.endswith(SUFFIX), lambda path, error: None)
            return [(path, file.version) for path, file in listed]
        root.fs.invalidate_cache()
        found = root.fs.find(base.path, detail=True)
        return [(path, version_of(info)) for path, info in found.items() if path.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    except Exception as error:
        raise storage_error(error, base.uri, "list") from error


def _local_files(base: str) -> Iterator[os.DirEntry[str]]:
    folders = [base]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.endswith(SUFFIX):
                        yield entry
        except FileNotFoundError:  # deleted meanwhile
            continue


def _local_version(entry: os.DirEntry[str]) -> str:
    """Returns the same version as `version_of` for a local file; a link has the size of its target."""
    own, size = entry.stat(follow_symlinks=False), entry.stat().st_size
    return f"{size}-{own.st_mtime}-{own.st_ctime}-{own.st_ino}"


def write_table(root: Root, path: str, table: pa.Table) -> None:
    """Writes a parquet file atomically.

    Raises:
        StorageError: It cannot be written; an existing file is unchanged.
    """
    write_bytes(root, path, to_parquet(table))


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
    """Returns whether no column but the vectors is nested, so that its name is its path in parquet."""
    return not any(pa.types.is_nested(field.type) for field in schema if field.name != "embedding")
