"""Commits a partition: two files that belong together, also if two runs write them at the same time."""

import random
import time

import pyarrow as pa

from boring_assets.errors import StorageError
from boring_assets.storage.errors import storage_error
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root

_TRIES = 10
_PAUSE_SECONDS = 0.5

File = tuple[str, pa.Buffer]


def write_pair(root: Root, failures: File, embeddings: File) -> None:
    """Writes a partition's files, and again if another run has written its failures in between.

    Each run checks after both of its writes, so the last run leaves two files that belong together.

    Args:
        root: The output.
        failures: Path of the failures file below it, and its bytes.
        embeddings: Path and bytes of the embeddings file, which is the commit mark.

    Raises:
        StorageError: The output cannot be written, or other runs keep writing the same partition.
    """
    path, wanted = failures[0], failures[1].to_pybytes()
    for _ in range(_TRIES):
        write_bytes(root, *failures)
        write_bytes(root, *embeddings)
        if _read(root, path) == wanted:
            return
        time.sleep(random.uniform(0, _PAUSE_SECONDS))
    raise StorageError(
        f"{root.uri}/{path} was written by another run {_TRIES} times while this one wrote it. Let one run "
        "at a time embed this partition, then embed it again."
    )


def _read(root: Root, path: str) -> bytes:
    try:
        return bytes(root.fs.cat_file(f"{root.path}/{path}"))
    except FileNotFoundError:
        return b""
    except Exception as error:
        raise storage_error(error, f"{root.uri}/{path}", "read") from error
