"""Shards, and why samples fail."""

from dataclasses import dataclass, field
from enum import StrEnum

from fsspec import AbstractFileSystem


class Reason(StrEnum):
    """Why a sample failed, as written to the failures file."""

    NOT_DOWNLOADED = "not_downloaded"
    MISSING_IMAGE = "missing_image"
    FETCH_ERROR = "fetch_error"
    NOT_ALLOWED = "not_allowed"
    TOO_LARGE = "too_large"
    DECODE_ERROR = "decode_error"
    BAD_VECTOR = "bad_vector"


@dataclass(frozen=True)
class Failure:
    """Why a sample could not be embedded."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)  # there can be a hundred thousand of them in memory
class Shard:
    """One input shard, and how to open it.

    Attributes:
        key: Its partition key: the path below the input root, without `.parquet`, e.g. `part-1/00017`.
        uri: Its full URI, for messages and the output's metadata.
        fs: Its filesystem.
        path: Its path on that filesystem.
        root: Path of the input's root on that filesystem, without a trailing slash. Image URLs below it are
            allowed.
        version: Its source version, which changes with the parquet or the tar beside it.
    """

    key: str
    uri: str
    fs: AbstractFileSystem = field(repr=False)
    path: str
    root: str
    version: str
