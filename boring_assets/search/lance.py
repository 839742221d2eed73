"""Opens LanceDB in the output, with the output's URI and credentials."""

import json
import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from boring_assets.errors import SettingsError
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root

if TYPE_CHECKING:
    import lancedb

FOLDER = "embedding_index"
TABLE = "images"


def connect(root: Root, folder: str = FOLDER) -> "lancedb.DBConnection":
    """Opens a LanceDB database in a folder of a root. Nothing is written.

    Raises:
        SettingsError: LanceDB is not installed, or does not support the storage.
    """
    # LanceDB warns about a table that does not exist before it creates it.
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        import lancedb
    except ImportError as error:
        raise SettingsError(
            'LanceDB is not installed. Install it: pip install "boring_assets[search]".'
        ) from error
    path, scheme = f"{root.path}/{folder}".rstrip("/"), root.uri.partition("://")[0]
    if scheme in ("file", "local"):
        return lancedb.connect(path)
    if scheme in ("s3", "s3a"):
        return lancedb.connect(f"s3://{path}", storage_options=_s3_options())
    if scheme in ("gs", "gcs"):
        return lancedb.connect(f"gs://{path}", storage_options=_gcs_options())
    if scheme in ("az", "abfs", "abfss"):
        return lancedb.connect(f"az://{path}", storage_options=_azure_options(root.fs))
    raise SettingsError(
        f"LanceDB cannot write to {root.uri}: it supports local disks, s3://, gs:// and az://."
    )


def _s3_options() -> dict[str, str]:
    """Options that LanceDB does not read from AWS's variables. It reads keys, profiles and roles itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {"region": region} if region else {}
    if endpoint:
        options |= {"endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
    return options


def _azure_options(fs: Any) -> dict[str, str]:
    """The credentials of adlfs, which LanceDB cannot read from a connection string.

    The parts of a connection string are described at
    https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string.
    """
    pairs = (part.partition("=") for part in (fs.connection_string or "").split(";"))
    parts = {name.strip(): value for name, _, value in pairs}
    endpoint = parts.get("BlobEndpoint", "")
    options = {
        "account_name": parts.get("AccountName") or fs.account_name,
        "account_key": parts.get("AccountKey") or fs.account_key,
        "sas_token": parts.get("SharedAccessSignature") or fs.sas_token,
        "client_id": fs.client_id,
        "client_secret": fs.client_secret,
        "tenant_id": fs.tenant_id,
        "endpoint": endpoint,
        "allow_http": str(endpoint.startswith("http://")).lower(),
    }
    return {name: value for name, value in options.items() if value}


def _gcs_options() -> dict[str, str] | None:
    """The address of a GCS emulator. LanceDB reads Google's own credentials itself."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if not emulator:
        return None
    account = {"gcs_base_url": emulator, "disable_oauth": True, "client_email": "", "private_key": ""}
    return {"service_account_key": json.dumps({**account, "private_key_id": ""}), "allow_http": "true"}


def open_table(root: Root) -> Any:
    """Returns the index's table, or None if it does not exist yet.

    Raises:
        SettingsError: LanceDB is not installed, or does not support the storage.
        StorageError: It cannot be read.
    """
    with index_errors(root, "read"):
        try:
            return connect(root).open_table(TABLE)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise


def quote(text: str) -> str:
    """A text as a literal of LanceDB's SQL."""
    return "'" + text.replace("'", "''") + "'"


def index_errors(root: Root, doing: str) -> AbstractContextManager[None]:
    """Raises LanceDB's errors as a StorageError that names the index."""
    return storage_errors(f"{root.uri}/{FOLDER}", doing, (OSError, RuntimeError, ValueError))
