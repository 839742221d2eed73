"""Opens a URI or a path as a filesystem. Credentials and endpoints come from the environment, never the URI.

The URI's scheme selects the fsspec backend. For S3, AWS's own variables and files set region, profile, role
and endpoint (`AWS_ENDPOINT_URL`). fsspec's own variables set other options, e.g.
`FSSPEC_S3='{"anon": true}'` for a public bucket.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import SettingsError, StorageError
from boring_assets.secrets import CREDENTIALS
from boring_assets.storage.errors import causes, storage_error, storage_errors

_S3 = ("s3", "s3a")
_OPTIONS = {"use_listings_cache": False}
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure"}


@dataclass(frozen=True)
class Root:
    """An opened folder, bucket or bucket prefix.

    Attributes:
        uri: Its full URI, for messages. No trailing slash, except for the root of a filesystem.
        fs: Its filesystem.
        path: Its path on that filesystem, without a trailing slash.
    """

    uri: str
    fs: AbstractFileSystem = field(repr=False)
    path: str

    @contextmanager
    def open(self, path: str, **options: Any) -> Iterator[IO[bytes]]:
        """Opens a file for reading, by its path below the root.

        Raises:
            StorageError: It cannot be opened, or the block cannot read it.
        """
        file = f"{self.path}/{path}"
        with storage_errors(f"{self.uri}/{path}", "read"), self.fs.open(file, "rb", **options) as opened:
            yield opened

    def read(self, path: str) -> bytes:
        """Returns the content of a file, in one request, by its path below the root.

        Raises:
            StorageError: It cannot be read.
        """
        with storage_errors(f"{self.uri}/{path}", "read"):
            return bytes(self.fs.cat_file(f"{self.path}/{path}"))


def open_root(uri: str) -> Root:
    """Opens a path or a URI. Nothing is read yet.

    Args:
        uri: A path (`~` and relative ones are resolved), or a URI that fsspec knows: `file://`, `s3://`,
            `gs://`, `az://`, `memory://`, ...

    Returns:
        The root. Local folders below it are created when files are written. Listings are never cached.

    Raises:
        SettingsError: The URI is empty, malformed or holds a password, or its scheme is unknown or needs a
            package that is not installed.
        StorageError: The filesystem cannot be set up.
    """
    scheme = _scheme(uri)
    local = scheme in ("", "file", "local")
    if local:
        path = uri.partition("://")[2] or uri
        uri = str(Path(os.path.abspath(Path(path).expanduser())))  # noqa: PTH100  (keeps symbolic links)
    try:
        if scheme in _S3:
            fs = filesystem(scheme)
            path = fs._strip_protocol(uri)
        else:
            fs, path = url_to_fs(uri, **({"auto_mkdir": True} if local else _OPTIONS))
    except ImportError as error:
        raise SettingsError(
            f"{uri} needs a package that is not installed ({error}). {_how_to_install(scheme)}"
        ) from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise SettingsError(
                f"{uri} has the scheme {scheme!r}, which is unknown. "
                "Give a path, or a URI such as s3://bucket/prefix, gs://..., az://... or file:///..."
            ) from error
        raise SettingsError(
            f"{uri} is not a valid URI: {error}. Expected a URI such as s3://bucket/prefix."
        ) from error
    except Exception as error:
        raise storage_error(error, uri, "open") from error
    path = path.rstrip("/") or fs.root_marker
    return Root(uri=fs.unstrip_protocol(path), fs=fs, path=path)


def check_readable(root: Root) -> None:
    """Checks that a root exists, is a folder or a prefix, and can be read.

    Args:
        root: On object storage, a prefix with nothing below it does not exist.

    Raises:
        StorageError: It is missing, is a file, or cannot be read.
    """
    with storage_errors(root.uri, "read"):
        info = root.fs.info(root.path)
        if isinstance(root.fs, LocalFileSystem) and info["type"] == "directory":
            os.scandir(root.path).close()
    if info["type"] != "directory":
        raise StorageError(
            f"{root.uri} is a file, not a folder. Give the folder or bucket prefix that holds it."
        )


def check_writable(root: Root) -> None:
    """Writes and removes a small hidden file, so that a run with a read-only output fails before it embeds.

    Args:
        root: The output. A missing local folder is created, a missing bucket is not.

    Raises:
        StorageError: The file cannot be written or removed.
    """
    # Always the same name, so that the next run removes what a killed run has left.
    probe = f"{root.path.rstrip('/')}/.write-check"
    with storage_errors(root.uri, "write"):
        root.fs.pipe_file(probe, b"boring_assets checks that it can write here\n")
        with suppress(FileNotFoundError):  # another run has removed it
            root.fs.rm_file(probe)


def check_refusal(error: BaseException, root: Root) -> None:
    """Raises if everything below a root is refused, and not one file alone. S3 does not say which to a HEAD.

    Args:
        error: The error of one file.
        root: The root of that file. If the error was a refusal, one name is listed below it.

    Raises:
        StorageError: Nothing below the root can be read.
    """
    if hasattr(root.fs, "call_s3") and any(isinstance(one, PermissionError) for one in causes(error)):
        bucket, prefix, _ = root.fs.split_path(root.path)
        with storage_errors(root.uri, "read"):
            root.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)


def _scheme(uri: str) -> str:
    """The URI's scheme; empty for a path."""
    if not uri.strip():
        raise SettingsError(
            "The input or the output is empty. Give a path, or a URI such as s3://bucket/prefix."
        )
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if match := re.match(r"([a-z][a-z0-9]+):/", uri):
            raise SettingsError(f"{uri} is not a URI: write {match[1]}://...")
        return ""
    if CREDENTIALS.search(uri):
        raise SettingsError(
            f"A URI with {scheme}:// holds credentials, which would end up in logs. Take them out, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE (other clouds: their own variables)."
        )
    if scheme in ("s3", "s3a") and not rest.partition("/")[0]:
        raise SettingsError(f"{uri} has no bucket. Expected s3://bucket or s3://bucket/prefix.")
    return scheme


def filesystem(scheme: str) -> AbstractFileSystem:
    """The filesystem of a URI's scheme, with the options of this project for S3."""
    if scheme not in _S3:
        return fsspec.filesystem(scheme)
    from boring_assets.storage.s3 import FastS3FileSystem

    return FastS3FileSystem(**_OPTIONS, **_s3_options())


def _s3_options() -> dict[str, Any]:
    """What botocore and s3fs do not set themselves."""
    # Time-outs in seconds, and connections for reading ahead. A silent server is given up after ten times.
    config: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 15, "max_pool_connections": 32}
    if not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys():
        config["retries"] = {"mode": "standard", "total_max_attempts": 2}
    options: dict[str, Any] = {"config_kwargs": config}
    # botocore, unlike AWS's other SDKs, reads only AWS_DEFAULT_REGION.
    region = os.environ.get("AWS_REGION")
    if region and not os.environ.get("AWS_DEFAULT_REGION"):
        options["client_kwargs"] = {"region_name": region}
    return options


def _how_to_install(scheme: str) -> str:
    extra = _EXTRAS.get(scheme)
    return f'Install it: pip install "boring_assets[{extra}]".' if extra else "Install that package."
