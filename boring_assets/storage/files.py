"""Writes files atomically, on local disks and on object storage."""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root

_STAGING = ".staging"
# s3fs uploads in parts from twice this size.
_MULTIPART_BYTES = 100 * 2**20
_TRIES = 5


def write_bytes(root: Root, path: str, data: bytes | pa.Buffer, **conditions: str) -> None:
    """Writes a file atomically, and removes what an earlier attempt at the same file has left.

    Args:
        root: The output.
        path: The file's path below it.
        data: Its content.
        conditions: Further arguments of S3's PutObject, e.g. `IfMatch`.

    Raises:
        StorageError: It cannot be written. An existing file stays as it is.
    """
    target = f"{root.path}/{path}"
    with storage_errors(f"{root.uri}/{path}", "write"):
        if isinstance(root.fs, LocalFileSystem):
            _write_local(Path(root.path), path, data)
        elif len(data) >= _MULTIPART_BYTES and hasattr(root.fs, "abort_mpu"):
            _write_parts(root, target, bytes(data))
        else:
            root.fs.pipe_file(target, bytes(data), **conditions)


def _write_parts(root: Root, target: str, data: bytes) -> None:
    """Uploads a large object in parts, after it aborts unfinished uploads of it, whose parts cost money.

    If another run is uploading the same object, its upload is aborted too, and it starts again.
    """
    bucket, key, _ = root.fs.split_path(target)
    # Not everyone who can write can also list uploads, and an upload may have just ended.
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
    """Opens a staging file that stays locked while its writer lives. It is removed unless it is renamed."""
    while True:
        name = staging / f"{prefix}-{uuid.uuid4().hex}"
        with name.open("xb") as file:
            try:
                _lock(file)
                if os.fstat(file.fileno()).st_nlink == 0:
                    continue  # removed before it was locked
                yield name, file
            except BaseException:
                name.unlink(missing_ok=True)
                raise
        return


def _sweep(staging: Path, prefix: str) -> None:
    """Removes the staging files of one target that no writer has locked: their writers have died."""
    for stale in staging.glob(f"{prefix}-*"):
        with suppress(OSError), stale.open("r+b") as file:  # renamed, or still locked
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


def _lock(file: IO[bytes]) -> None:
    with suppress(OSError):  # a filesystem without locks: then no process removes it either
        fcntl.flock(file, fcntl.LOCK_EX)


def version_of(info: Mapping[str, Any]) -> str:
    """Returns what changes with a file: its ETag, or size, time and inode.

    Args:
        info: The file's entry in a listing.
    """
    tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    return tag or "-".join(str(info.get(name, "")) for name in ("size", "mtime", "created", "ino"))
