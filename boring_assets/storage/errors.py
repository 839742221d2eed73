"""What is said when storage cannot be reached: which URI, why, and the fix."""

import errno
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from boring_assets.errors import StorageError
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


def storage_error(error: BaseException, uri: str, doing: str) -> StorageError:
    """Says what went wrong with storage, and how to mend it.

    Args:
        error: What the filesystem raised; its causes are looked at too.
        uri: What could not be reached; goes into the message.
        doing: The verb of what was tried: `read`, `write`, `list`, ...

    Returns:
        The error to raise `from error`. Its message holds no secret.
    """
    if isinstance(error, StorageError):
        return error
    chain = list(causes(error))
    codes = {str(_response(one).get("Code", "")) for one in chain} - {""}
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    why = _explain(chain, codes, names, numbers, uri) or (
        f"{without_secrets(f'{type(error).__name__}: {error}')}. "
        "See that the storage is up and the URI right, and try again."
    )
    return StorageError(f"Cannot {doing} {uri}: {why}")


def is_down(error: BaseException) -> bool:
    """Whether an error says that the storage as a whole refuses or does not answer, and not one file's fault.

    Args:
        error: What was raised; its causes are looked at too.

    Returns:
        True where whatever is read next would meet the same.
    """
    chain = list(causes(error))
    codes = {str(_response(one).get("Code", "")) for one in chain}
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    return bool(codes & _WRONG_CREDENTIALS or names & (_NO_CREDENTIALS | _UNREACHABLE))


def _explain(
    chain: list[BaseException], codes: set[str], names: set[str], numbers: set[int | None], uri: str
) -> str:
    bucket = urlsplit(uri).netloc or uri
    said = ", ".join(sorted(codes))
    if names & _NO_CREDENTIALS:
        return (
            "no usable credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or run where a role is attached (for other clouds: log in by their own tool)."
        )
    if codes & _WRONG_CREDENTIALS:
        return (
            f"the storage refused the credentials ({said}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            f"AWS_SESSION_TOKEN or AWS_PROFILE, and that they belong to {_endpoint()}."
        )
    if "RequestTimeTooSkewed" in codes:
        return "this machine's clock is wrong (RequestTimeTooSkewed). Set it right."
    if codes & _WRONG_REGION:
        return f"the bucket {bucket} lies in another region ({said}). Set AWS_REGION to the bucket's region."
    if "NoSuchBucket" in codes:
        return f"there is no bucket {bucket} at {_endpoint()}. Check its name, or create it."
    if codes & {"AccessDenied", "AllAccessDisabled", "403", "Forbidden"}:
        return (
            f"the credentials are wrong or may not do this ({said}). Check them, and that they allow "
            "listing and reading the input, and writing and deleting below the output."
        )
    if any(isinstance(one, ValueError) and "Invalid endpoint" in str(one) for one in chain):
        return f"{_endpoint()} is no URL of a server. Expected is one like `https://host:port`."
    if names & _UNREACHABLE:
        return (
            f"the server does not answer at {_endpoint()}. Check AWS_ENDPOINT_URL, the network, "
            "and that the server is up."
        )
    if errno.ENOSPC in numbers or errno.EDQUOT in numbers:
        return "the disk or the quota is full. Free some space, or choose another place."
    if errno.EROFS in numbers:
        return "the filesystem is read-only. Choose another place, or mount it for writing."
    if "PermissionError" in names:
        return "permission denied. Check who owns it and its mode, or run as a user who may."
    if "NotADirectoryError" in names or "FileExistsError" in names:
        return "a part of the path is a file, not a folder. Choose another path, or move the file."
    if "IsADirectoryError" in names:
        return "it is a folder, not a file. Choose another path, or move the folder."
    if "FileNotFoundError" in names:
        return "there is nothing at that place. Check the spelling, and that something was written there."
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
