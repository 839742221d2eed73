"""Shards, and why samples fail."""

from dataclasses import dataclass, field, replace
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
    EXCLUDED = "excluded"


NOT_COUNTED = (Reason.NOT_DOWNLOADED, Reason.EXCLUDED)
"""Reasons that do not count as failed images: there was no image to embed, or it was not wanted."""


@dataclass(frozen=True)
class Failure:
    """Why a sample could not be embedded."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The columns of a shard's image, key, caption and URL that the settings name.

    In a parquet these are columns; in a TFRecord file, features; in a tar, the extension of members
    (`left.png` of `0001.left.png`) or a name in their JSON. An empty name is found by the usual names.

    Attributes:
        keep_images: Whether image columns that are not embedded stay among the rows' other columns.
    """

    image: str = ""
    key: str = ""
    caption: str = ""
    url: str = ""
    keep_images: bool = False


USUAL_NAMES = ColumnNames()
"""Nothing is named: columns are found by their usual names."""


@dataclass(frozen=True, slots=True)  # there can be a hundred thousand of them in memory
class Shard:
    """One input shard, and how to open it.

    Attributes:
        key: Its partition key: the path below the input root, without `.parquet`, e.g. `part-1/00017`.
        uri: Its full URI, for messages and the output's metadata.
        path: Its path on its filesystem.
        root: Path of the input's root on that filesystem, without a trailing slash. Image URLs below it are
            allowed.
        version: Its source version, which changes with the parquet or the tar beside it.
        columns: Which of its columns to read, where the settings name them.
        only_rows: Embed only these rows, by their number in the shard. None means all.
    """

    key: str
    uri: str
    fs: AbstractFileSystem = field(repr=False)
    path: str
    root: str
    version: str
    columns: ColumnNames = USUAL_NAMES
    only_rows: frozenset[int] | None = field(default=None, repr=False)

    def beside(self, ending: str) -> "Shard":
        """Returns the file or folder beside the parquet, of the same name with another ending."""
        path, uri = (name.removesuffix(".parquet") + ending for name in (self.path, self.uri))
        return replace(self, path=path, uri=uri)
