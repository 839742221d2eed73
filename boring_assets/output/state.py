"""Small JSON files of an output that any number of runs change at once, none losing another's change.

On a local disk the runs take turns by a lock on the output's folder. On S3 a write is refused when the file
has changed since it was read. Elsewhere each run reads again what it has written.
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
    """Lets one run after another change an output's state, where its folder can be locked."""
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
    """The JSON object in a file; empty where there is no such file, or none that can be read as one."""
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
        change: Gives the new content for the present one, which is empty where there is no file. Nothing is
            written where it is the same.
        indent: For people who read the file.

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
    """On S3, what the file must still be when it is written."""
    if "s3" not in root.fs.protocol:
        return {}
    try:
        return {"IfMatch": root.fs.info(f"{root.path}/{path}")["ETag"]}
    except FileNotFoundError:
        return {"IfNoneMatch": "*"}


def _is_refused(error: BaseException | None) -> bool:
    """Whether S3 has refused a write by its condition."""
    response = getattr(getattr(error, "__cause__", None), "response", {})
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)
