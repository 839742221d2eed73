"""A URI or a path, to a filesystem; credentials and endpoints follow the environment, never the URI.

Every backend of fsspec works by its scheme. For S3, region, profile, role and endpoint follow AWS's own
variables and files, `AWS_ENDPOINT_URL` among them. Other options of a backend go in fsspec's own variables,
e.g. `FSSPEC_S3='{"anon": true}'` for a public bucket.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from boring_assets.errors import SettingsError, StorageError
from boring_assets.secrets import CREDENTIALS
from boring_assets.storage.errors import causes, storage_error

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure"}


@dataclass(frozen=True)
class Root:
    """A folder, or a bucket with or without a prefix, that was opened.

    Attributes:
        uri: Its full URI, for people; no trailing slash, unless it is the root of its filesystem.
        fs: The filesystem that it lies on.
        path: Its path on that filesystem, without a trailing slash.
    """

    uri: str
    fs: AbstractFileSystem = field(repr=False)
    path: str


def open_root(uri: str) -> Root:
    """Opens the place that a path or a URI names; nothing is read yet.

    Args:
        uri: A path (`~` and relative ones are resolved), or a URI that fsspec knows: `file://`, `s3://`,
            `gs://`, `az://`, `memory://`, ...

    Returns:
        The root. Local folders below it are made as files are written; listings are never cached.

    Raises:
        SettingsError: The URI is empty, malformed, of an unknown scheme, of one whose package is not
            installed, or holds a password.
        StorageError: The filesystem cannot be set up.
    """
    scheme = _scheme(uri)
    local = scheme in ("", "file", "local")
    if local:
        path = uri.partition("://")[2] or uri
        uri = str(Path(os.path.abspath(Path(path).expanduser())))  # noqa: PTH100  (keeps symbolic links)
    try:
        fs, path = url_to_fs(uri, **({"auto_mkdir": True} if local else _options(scheme)))
    except ImportError as error:
        raise SettingsError(
            f"{uri} needs a package that is not installed ({error}). {_how_to_install(scheme)}"
        ) from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise SettingsError(
                f"{uri} has the scheme {scheme!r}, which is not known. "
                "Give a path, or a URI such as s3://bucket/prefix, gs://..., az://... or file:///..."
            ) from error
        raise SettingsError(f"{uri} is no usable URI: {error}. Expected is s3://bucket/prefix.") from error
    except Exception as error:
        raise storage_error(error, uri, "open") from error
    path = path.rstrip("/") or fs.root_marker
    return Root(uri=fs.unstrip_protocol(path), fs=fs, path=path)


def check_readable(root: Root) -> None:
    """Checks that a root is there, and is a folder or a prefix.

    Args:
        root: What to look at; on object storage a prefix with nothing below it does not exist.

    Raises:
        StorageError: It is missing, is a file, or may not be read.
    """
    try:
        info = root.fs.info(root.path)
        if isinstance(root.fs, LocalFileSystem) and info["type"] == "directory":
            os.scandir(root.path).close()
    except Exception as error:
        raise storage_error(error, root.uri, "read") from error
    if info["type"] != "directory":
        raise StorageError(
            f"{root.uri} is a file, not a folder. Give the folder (or bucket prefix) that holds it."
        )


def check_writable(root: Root) -> None:
    """Writes and removes a small hidden file, so that a run fails before its work and not after it.

    Args:
        root: Where the output goes; a local folder is made when it is missing, a bucket is not.

    Raises:
        StorageError: It cannot be written, or what was written cannot be removed.
    """
    # Always the same name: what a run that was killed here has left, the next one removes.
    probe = f"{root.path.rstrip('/')}/.write-check"
    try:
        root.fs.pipe_file(probe, b"boring_assets looks whether it may write here\n")
        with suppress(FileNotFoundError):  # another run that looks at the same time was faster
            root.fs.rm_file(probe)
    except Exception as error:
        raise storage_error(error, root.uri, "write") from error


def check_refusal(error: BaseException, root: Root) -> None:
    """Finds out whether a refusal was meant for one file or for all: S3 does not say so to a HEAD.

    Args:
        error: What was raised for a file.
        root: What the file lies below; where the error was a refusal, it is asked for one name.

    Raises:
        StorageError: Nothing below the root may be read.
    """
    if hasattr(root.fs, "call_s3") and any(isinstance(one, PermissionError) for one in causes(error)):
        bucket, prefix, _ = root.fs.split_path(root.path)
        try:
            root.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except Exception as why:
            raise storage_error(why, root.uri, "read") from why


def _scheme(uri: str) -> str:
    """The URI's scheme; empty for a path."""
    if not uri.strip():
        raise SettingsError("An input or output is empty. Give a path, or a URI such as s3://bucket/prefix.")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if match := re.match(r"([a-z][a-z0-9]+):/", uri):
            raise SettingsError(f"{uri} is no URI: after {match[1]}: come two slashes, e.g. {match[1]}://...")
        return ""
    if CREDENTIALS.search(uri):
        raise SettingsError(
            f"A URI with {scheme}:// holds credentials, which would end up in logs. Take them out, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE (other clouds: their own variables)."
        )
    if scheme in ("s3", "s3a") and not rest.partition("/")[0]:
        raise SettingsError(f"{uri} names no bucket. Expected is s3://bucket or s3://bucket/prefix.")
    return scheme


def _options(scheme: str) -> dict[str, Any]:
    """Options of a remote filesystem; for S3, only what botocore and s3fs do not do by themselves."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme not in ("s3", "s3a"):
        return options
    import s3fs.core

    # s3fs tries five times what breaks off on the way; with this, also what a server calls its own fault.
    s3fs.core.set_custom_error_handler(_may_pass)
    # Seconds, and connections for reading ahead. A server that is silent is given up after ten times that.
    config: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 15, "max_pool_connections": 32}
    if not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys():
        config["retries"] = {"mode": "standard", "total_max_attempts": 2}
    options["config_kwargs"] = config
    # botocore, unlike AWS's other SDKs, reads AWS_DEFAULT_REGION alone.
    region = os.environ.get("AWS_REGION")
    if region and not os.environ.get("AWS_DEFAULT_REGION"):
        options["client_kwargs"] = {"region_name": region}
    return options


def _may_pass(error: Exception) -> bool:
    """Whether S3 has answered with a status from 500 up, or the connection was refused or reset."""
    from botocore.exceptions import ConnectionError as NotConnected

    if isinstance(error, NotConnected):
        return True
    response = getattr(error, "response", None)
    answer = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return int(answer.get("HTTPStatusCode") or 0) >= 500


def _how_to_install(scheme: str) -> str:
    extra = _EXTRAS.get(scheme)
    return f'Install it: pip install "boring_assets[{extra}]".' if extra else "Install that package."
