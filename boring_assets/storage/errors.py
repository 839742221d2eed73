"""Explains why storage cannot be reached: which URI, why, and the fix."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from boring_assets.errors import BoringError, ChangedShardError, SettingsError, ShardError, StorageError
from boring_assets.secrets import without_secrets

_WRONG_CREDENTIALS = {
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "InvalidToken",
    "ExpiredToken",
    "InvalidClientTokenId",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "SSOTokenLoadError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
}
_WRONG_REGION = {
    "PermanentRedirect",
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_UNREACHABLE = {
    "HTTPClientError",
    "EndpointConnectionError",
    "ConnectionError",
    "ClientConnectionError",
    "TimeoutError",
    "gaierror",
}
_STAYS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_NETWORK = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "requests", "urllib3"}


def storage_error(error: BaseException, uri: str, doing: str) -> StorageError:
    """Returns a StorageError with the cause and the fix.

    Args:
        error: What the filesystem raised. Its causes are searched too.
        uri: What could not be reached, for the message.
        doing: What was tried: `read`, `write`, `list`, ...

    Returns:
        The error to raise `from error`. Its message contains no secrets.
    """
    if isinstance(error, StorageError):
        return error
    chain = list(causes(error))
    codes = {str(_response(one).get("Code", "")) for one in chain} - {""}
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    why = _explain(chain, codes, names, numbers, uri) or (
        f"{without_secrets(f'{type(error).__name__}: {error}')}. "
        "Check that the storage is up and the URI is right, then try again."
    )
    return StorageError(f"Cannot {doing} {uri}: {why}")


@contextmanager
def storage_errors(
    uri: str, doing: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Raises the errors of the block as the StorageError that `storage_error` returns.

    Args:
        uri: What the block reads or writes, for the message.
        doing: What it does: `read`, `write`, `list`, ...
        kinds: Only errors of these classes.
    """
    try:
        yield
    except kinds as error:
        raise storage_error(error, uri, doing) from error


def is_down(error: BaseException) -> bool:
    """Whether an error concerns the whole storage (credentials, network), and not one file.

    Args:
        error: What was raised. Its causes are searched too.

    Returns:
        True if every further request would fail in the same way.
    """
    chain = list(causes(error))
    codes = {str(_response(one).get("Code", "")) for one in chain}
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    return bool(codes & _WRONG_CREDENTIALS or names & (_NO_CREDENTIALS | _UNREACHABLE))


def is_transient(error: BoringError) -> bool:
    """Returns whether the same work may succeed later, without a change of a file or a setting.

    That is so of storage, network and device. A damaged shard and a wrong setting stay as they are.

    Args:
        error: What was raised; the causes of a `ShardError` decide.
    """
    if isinstance(error, SettingsError):
        return False
    if not isinstance(error, ShardError) or isinstance(error, ChangedShardError):
        return True
    for one in causes(error):
        if isinstance(one, _STAYS):
            return False
        names = {base.__name__ for base in type(one).__mro__}
        # pyarrow raises an OSError without a number for a damaged file.
        if (isinstance(one, OSError) and one.errno) or names & _UNREACHABLE or _library(one) in _NETWORK:
            return True
    return False


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _explain(
    chain: list[BaseException], codes: set[str], names: set[str], numbers: set[int | None], uri: str
) -> str:
    bucket = urlsplit(uri).netloc or uri
    codes_text = ", ".join(sorted(codes))
    if names & _NO_CREDENTIALS:
        return (
            "no usable credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or run on a machine with an IAM role (other clouds: log in with their own tool)."
        )
    if codes & _WRONG_CREDENTIALS:
        return (
            f"the storage refused the credentials ({codes_text}). Check AWS_ACCESS_KEY_ID, "
            f"AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN or AWS_PROFILE, and that they belong to {_endpoint()}."
        )
    if "RequestTimeTooSkewed" in codes:
        return "this machine's clock is wrong (RequestTimeTooSkewed). Set the clock."
    if codes & _WRONG_REGION:
        return (
            f"the bucket {bucket} is in another region ({codes_text}). Set AWS_REGION to the bucket's region."
        )
    if "NoSuchBucket" in codes:
        return f"there is no bucket {bucket} at {_endpoint()}. Check its name, or create it."
    if codes & {"AccessDenied", "AllAccessDisabled", "403", "Forbidden"}:
        return (
            f"the credentials are wrong or lack permission ({codes_text}). Check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE. They need to list and read the input, and to write and "
            "delete below the output."
        )
    if any(isinstance(one, ValueError) and "Invalid endpoint" in str(one) for one in chain):
        return f"{_endpoint()} is not a server URL. Expected a URL such as `https://host:port`."
    if names & _UNREACHABLE:
        return (
            f"the server does not answer at {_endpoint()}. Check AWS_ENDPOINT_URL, the network, "
            "and that the server is running."
        )
    if errno.ENOSPC in numbers or errno.EDQUOT in numbers:
        return "the disk or the quota is full. Free some space, or choose another output."
    if errno.EROFS in numbers:
        return "the filesystem is read-only. Choose another output, or mount it for writing."
    if "PermissionError" in names:
        return "permission denied. Check who owns it and its mode, or run as another user."
    if "NotADirectoryError" in names or "FileExistsError" in names:
        return "a part of the path is a file, not a folder. Choose another path, or move the file."
    if "IsADirectoryError" in names:
        return "it is a folder, not a file. Choose another path, or move the folder."
    if "FileNotFoundError" in names:
        return "nothing exists there. Check the spelling, and that something was written there."
    return ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _response(error: BaseException) -> dict[str, str]:
    """The `Error` part of a botocore `ClientError`; empty for any other exception."""
    response = getattr(error, "response", None)
    return response.get("Error", {}) if isinstance(response, dict) else {}


def _endpoint() -> str:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(name):
            return without_secrets(f"{name}={value}")
    return "the default endpoint (AWS_ENDPOINT_URL is not set)"
