"""Files of the output: written whole or not at all, and what they say of themselves."""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.schema import read_facts
from partitions.root import Root, storage_error
from partitions.shards import SUFFIX

_STAGING = ".staging"
# s3fs sends what is at least twice a chunk of this size in parts.
_MULTIPART_BYTES = 100 * 2**20
_TRIES = 5


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
    data = to_parquet(table)
    write_bytes(root, path, data)
    return data.size


def to_parquet(table: pa.Table) -> pa.Buffer:
    """A table as the bytes of a parquet file, each page with a checksum."""
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
        write_page_checksum=True,
    )
    return sink.getvalue()


def _flat(schema: pa.Schema) -> bool:
    """Whether each column but the vectors is one leaf, so that its name is also its path in parquet."""
    return not any(pa.types.is_nested(field.type) for field in schema if field.name != "embedding")


def write_bytes(root: Root, path: str, data: bytes | pa.Buffer, **conditions: str) -> None:
    """Writes a file whole or not at all; what an earlier try for the same file left behind is swept.

    Args:
        root: The output.
        path: The file's path below it.
        data: What goes into it.
        conditions: Further arguments of S3's PutObject.

    Raises:
        StorageError: It cannot be written; what was there before is untouched.
    """
    target = f"{root.path}/{path}"
    try:
        if isinstance(root.fs, LocalFileSystem):
            _write_local(Path(root.path), path, data)
        elif len(data) >= _MULTIPART_BYTES and hasattr(root.fs, "abort_mpu"):
            _write_parts(root, target, bytes(data))
        else:
            root.fs.pipe_file(target, bytes(data), **conditions)
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{path}", "write") from error


def _write_parts(root: Root, target: str, data: bytes) -> None:
    """Sends a large object; a process that died in the middle of that has left parts that cost money.

    Another run may be at work on the same object. Its upload is ended here, and it begins again.
    """
    bucket, key, _ = root.fs.split_path(target)
    # Who may write may not always list uploads, and one may have just ended; what fails here costs no run.
    with suppress(OSError):
        found = root.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        for upload in found.get("Uploads", []):
            if upload["Key"] == key:
                root.fs.abort_mpu(bucket, key, upload["UploadId"])
    for left in reversed(range(_TRIES)):
        try:
            root.fs.pipe_file(target, data)
        except FileNotFoundError as error:  # NoSuchUpload, or a missing bucket
            if left == 0 or "NoSuchUpload" not in str(getattr(error.__cause__, "response", "")):
                raise
        else:
            return


def _write_local(root: Path, path: str, data: bytes | pa.Buffer) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = root / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    prefix = hashlib.sha256(path.encode()).hexdigest()[:16]
    _sweep(staging, prefix)
    with _staged(staging, prefix) as (name, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        name.replace(target)


@contextmanager
def _staged(staging: Path, prefix: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """Opens a staging file that is locked as long as its writer lives; gone in the end, if not renamed."""
    while True:
        name = staging / f"{prefix}-{uuid.uuid4().hex}"
        with name.open("xb") as file:
            try:
                _lock(file)
                if os.fstat(file.fileno()).st_nlink == 0:
                    continue  # swept between its making and its lock
                yield name, file
            except BaseException:
                name.unlink(missing_ok=True)
                raise
        return


def _sweep(staging: Path, prefix: str) -> None:
    """Removes the staging files of one target whose writers have died: nobody holds their locks."""
    for stale in staging.glob(f"{prefix}-*"):
        with suppress(OSError), stale.open("r+b") as file:  # it was renamed, or its writer lives
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


def _lock(file: IO[bytes]) -> None:
    with suppress(OSError):  # a filesystem without locks: nobody else can lock it, so nobody sweeps it
        fcntl.flock(file, fcntl.LOCK_EX)


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
        path[len(base) + 1 :].removesuffix(SUFFIX): version_of(info)
        for path, info in sorted(found.items())
        if path.endswith(SUFFIX)
    }


def version_of(info: Mapping[str, Any]) -> str:
    """What changes with a file: its ETag, or size, time and inode.

    Args:
        info: What its filesystem says of it.
    """
    tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return tag or "-".join(str(info.get(name, "")) for name in ("size", "mtime", "created", "ino"))
