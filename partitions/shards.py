"""The partitions: one a shard, named by the shard's path below the input."""

import re

import dagster as dg
from dagster._core.definitions.partitions.utils.base import INVALID_PARTITION_SUBSTRINGS

from boring_assets.errors import ShardError

SUFFIX = ".parquet"
BARE = re.compile(r"(?:\.tar|\.tfrecords?|(\.tfrecords?-\d+-of-\d+))\Z")
"""How a shard without a parquet ends. The number of a TFRecord file stays in its partition key."""
SHARDS = dg.DynamicPartitionsDefinition(name="shards")


def key_of(path: str, root: str) -> str:
    """The partition key of a shard.

    Args:
        path: The shard's path (or URI), ending in `.parquet`.
        root: The path (or URI) of the input, which the shard lies below.

    Returns:
        Its path below the root without `.parquet`, e.g. `part-1/00017`.

    Raises:
        ShardError: The file is no parquet below the root, or its path makes no safe partition key.
    """
    prefix = root if root.endswith("/") or not root else f"{root}/"
    if not path.startswith(prefix) or not path.endswith(SUFFIX):
        raise ShardError(f"{path!r} is no shard: expected is a path ending in {SUFFIX} below {root!r}.")
    return check_key(path[len(prefix) : -len(SUFFIX)])


def uri_of(root_uri: str, key: str) -> str:
    """The path or URI of a shard: `key_of` backwards.

    Args:
        root_uri: The path or URI of the input, with or without a trailing slash.
        key: A partition key.

    Returns:
        The shard's path or URI below it.

    Raises:
        ShardError: The key is not safe.
    """
    check_key(key)
    return (
        f"{root_uri}{key}{SUFFIX}" if root_uri.endswith("/") or not root_uri else f"{root_uri}/{key}{SUFFIX}"
    )


def check_key(key: str) -> str:
    """Refuses a partition key that could lead out of the root, or that Dagster cannot store.

    Args:
        key: A partition key.

    Returns:
        The same key.

    Raises:
        ShardError: It has empty, `.` or `..` segments (so a leading slash too), a control character,
            something that Dagster forbids (such as `...`), or is no Unicode.
    """
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        why = "has an empty, `.` or `..` part"
    elif bad := [text for text in INVALID_PARTITION_SUBSTRINGS if text in key]:
        why = f"holds {bad[0]!r}, which Dagster forbids in a partition key"
    elif any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in key):
        why = "holds a control character"
    elif any(0xD800 <= ord(letter) < 0xE000 for letter in key):
        why = "is not UTF-8"
    else:
        return key
    raise ShardError(f"The shard {key!r} cannot be a partition: its path {why}. Rename the file.")
