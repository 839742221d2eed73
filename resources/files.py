"""Files of the output: written whole or not at all, and what they say of themselves."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.schema import read_facts
from partitions.root import Root, storage_error
from partitions.shards import SUFFIX

_STAGING = ".staging"


def committed_facts(root: Root, path: str) -> dict[str, Any]:
    """What a committed file's metadata says.

    Args:
        root: The output.
        path: The file's path below it.

    Returns:
        The facts; empty where there is no file, or one that cannot be read as one of ours.

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
    sink = pa.BufferOutputStream()
    # Vectors neither repeat nor compress; trying to would cost more than writing them.
    plain = "embedding.list.element"
    rest = [name for name in table.column_names if name != "embedding"]
    pq.write_table(
        table,
        sink,
        row_group_size=50_000,
        compression={**dict.fromkeys(rest, "zstd"), plain: "none"} if _flat(table.schema) else "zstd",
        use_dictionary=rest,
        write_statistics=rest,
    )
    data = sink.getvalue()
    write_bytes(root, path, data)
    return data.size


def _flat(schema: pa.Schema) -> bool:
    """Whether each column but the vectors is one leaf, so that its name is also its path in parquet."""
    return not any(pa.types.is_nested(field.type) for field in schema if field.name != "embedding")


def write_bytes(root: Root, path: str, data: bytes | pa.Buffer) -> None:
    """Writes a file whole or not at all.

    Args:
        root: The output.
        path: The file's path below it.
        data: What goes into it.

    Raises:
        StorageError: It cannot be written; what was there before is untouched.
    """
    target = f"{root.path}/{path}"
    try:
        if isinstance(root.fs, LocalFileSystem):
            _write_local(Path(root.path), Path(target), data)
        else:
            root.fs.pipe_file(target, bytes(data))
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{path}", "write") from error


def _write_local(root: Path, target: Path, data: bytes | pa.Buffer) -> None:
    staged = root / _STAGING / uuid.uuid4().hex
    staged.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def file_versions(root: Root, folder: str) -> dict[str, str]:
    """The parquet files of a folder of the output, by one listing.

    Args:
        root: The output.
        folder: `image_embeddings`, say.

    Returns:
        For each partition key what changes with its file: an ETag, or size, time and inode.

    Raises:
        StorageError: The output cannot be listed; one that is not there yet holds none.
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
        path[len(base) + 1 :].removesuffix(SUFFIX): _version(info)
        for path, info in sorted(found.items())
        if path.endswith(SUFFIX)
    }


def _version(info: dict[str, Any]) -> str:
    tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return tag or "-".join(str(info.get(name, "")) for name in ("size", "mtime", "created", "ino"))
