"""What the engine reads and answers: shards, limits, and what can become of a sample."""

from dataclasses import dataclass, field
from enum import StrEnum

from fsspec import AbstractFileSystem


class Reason(StrEnum):
    """Why a sample failed; the value is what stands in the failures file."""

    NOT_DOWNLOADED = "not_downloaded"
    MISSING_IMAGE = "missing_image"
    FETCH_ERROR = "fetch_error"
    NOT_ALLOWED = "not_allowed"
    TOO_LARGE = "too_large"
    DECODE_ERROR = "decode_error"
    BAD_VECTOR = "bad_vector"


@dataclass(frozen=True)
class Failure:
    """What became of a sample that could not be embedded."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)  # a catalogue holds a hundred thousand of them
class Shard:
    """One input parquet file, and how to reach it.

    Attributes:
        key: Its partition key: the path below the input root, without `.parquet`, e.g. `part-1/00017`.
        uri: Its full URI, for people and for the output's metadata.
        fs: The filesystem that it lies on.
        path: Its path on that filesystem.
        root: Path of the dataset's root on that filesystem, without a trailing slash; image URLs below
            it are allowed.
        version: Its source version: changes when the parquet or the tar beside it changes.
    """

    key: str
    uri: str
    fs: AbstractFileSystem = field(repr=False)
    path: str
    root: str
    version: str
