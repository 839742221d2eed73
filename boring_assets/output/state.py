"""Small JSON files of an output, which several runs may change at the same time without losing a change.

On a local disk, the runs lock the output's folder. S3 refuses a write if the file has changed since it was
read. On other storages each run reads the file again after it has written it.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import StorageError
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root

_TRIES = 50
Json = dict[str, Any]


@contextmanager
def locked(root: Root) -> Iterator[None]:
    """Locks an output's folder, if it is on a local disk, so that one run at a time changes its state."""
    folder = None
    if isinstance(root.fs, LocalFileSystem):
        root.fs.makedirs(root.path, exist_ok=True)
        folder = os.open(root.path, os.O_RDONLY)
        with suppress(OSError):  # some network disks lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)


def read_json(root: Root, path: str) -> Json:
    """Returns the JSON object in a file; empty if there is no such file, or it is not a JSON object."""
    try:
        found = json.loads(root.fs.cat_file(f"{root.path}/{path}"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def update_json(root: Root, path: str, change: Callable[[Json], Json], *, indent: int | None = None) -> Json:
    """Changes a JSON file, again where another run writes it at the same time; returns its content.

    Args:
        root: The output, `locked`.
        path: The file's path below it.
        change: Returns the new content for the present one, which is empty if there is no file. An unchanged
            file is not written.
        indent: Indentation of the JSON.

    Raises:
        StorageError: It cannot be written.
    """
    for _ in range(_TRIES):
        conditions = _conditions(root, path)
        before = read_json(root, path)
        after = change(before)
        if after == before and before:
            return before
        try:
            write_bytes(root, path, json.dumps(after, indent=indent).encode(), **conditions)
        except StorageError as error:
            if _is_refused(error.__cause__):
                continue
            raise
        if conditions or isinstance(root.fs, LocalFileSystem) or read_json(root, path) == after:
            return after
    raise StorageError(
        f"{root.uri}/{path} was written by other runs {_TRIES} times while this one changed it. Run it again."
    )


def _conditions(root: Root, path: str) -> dict[str, str]:
    """Returns the conditions of a write to S3: the file must not have changed."""
    if "s3" not in root.fs.protocol:
        return {}
    try:
        return {"IfMatch": root.fs.info(f"{root.path}/{path}")["ETag"]}
    except FileNotFoundError:
        return {"IfNoneMatch": "*"}


def _is_refused(error: BaseException | None) -> bool:
    """Returns whether S3 has refused a write because of its condition."""
    response = getattr(getattr(error, "__cause__", None), "response", {})
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)
