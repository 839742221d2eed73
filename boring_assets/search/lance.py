"""LanceDB over the project's output: opened with the same URI and the same credentials."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from boring_assets.errors import SettingsError
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root

if TYPE_CHECKING:
    import lancedb

FOLDER = "embedding_index"
TABLE = "images"
_SCHEMES = ("file", "s3", "gs", "az", "abfs", "abfss")


def connect(root: Root) -> "lancedb.DBConnection":
    """Opens the output's database; nothing is written.

    Args:
        root: The output.

    Raises:
        SettingsError: LanceDB is not installed, or knows no such storage.
    """
    # Its warnings are of its own making: a table that is created did not exist before.
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        import lancedb
    except ImportError as error:
        raise SettingsError(
            'Search needs LanceDB, which is not installed. Install it: pip install "boring_assets[search]".'
        ) from error
    scheme = root.uri.partition("://")[0]
    if scheme not in _SCHEMES:
        raise SettingsError(
            f"The index cannot lie at {root.uri}: LanceDB writes to local disks, s3://, gs:// and az://."
        )
    uri = f"{root.path if scheme == 'file' else root.uri}/{FOLDER}"
    return lancedb.connect(uri, storage_options=_options() if scheme == "s3" else None)


def _options() -> dict[str, str]:
    """What LanceDB does not take from AWS's variables by itself; keys, profiles and roles it does."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {"region": region} if region else {}
    if endpoint:
        options |= {"endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
    return options


def open_table(root: Root) -> Any:
    """The index's table, or None where there is none yet.

    Raises:
        SettingsError: LanceDB is not installed, or knows no such storage.
        StorageError: It cannot be read.
    """
    database = connect(root)
    with told(root, "read"):
        try:
            return database.open_table(TABLE)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise


@contextmanager
def told(root: Root, doing: str) -> Iterator[None]:
    """Turns what LanceDB raises into a StorageError that names the index.

    Args:
        root: The output.
        doing: The verb of what was tried.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise storage_error(error, f"{root.uri}/{FOLDER}", doing) from error
