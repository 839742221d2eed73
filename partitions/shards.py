"""The partition of each shard: its key is the shard's path below the input."""

import re

import dagster as dg

from boring_assets.errors import ShardError

SUFFIX = ".parquet"
# Filesystems allow names of 255 bytes, object storage paths of 1024; the output's path needs a part of it.
_MAX_SEGMENT, _MAX_KEY = 255 - len(SUFFIX), 800
# C0 and C1, the two line separators of Unicode, and the characters that change the direction of text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
LONE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tfrecord", ".tfrecords")
"""Endings of files that are shards without a parquet."""
# Most keys match: short parts of ASCII letters and digits.
_PLAIN = re.compile(r"[\w-][\w.=+-]{0,99}(?:/[\w-][\w.=+-]{0,99}){0,6}", re.ASCII)
_NUMBERED = re.compile(r"\.tfrecords?-\d+-of-\d+\Z")
FORBIDDEN = ("...", "\a", "\b", "\f", "\n", "\r", "\t", "\v", "\0")
"""Texts that Dagster refuses in a partition key."""
SHARDS = dg.DynamicPartitionsDefinition(name="shards")


def lone_stem(path: str) -> str | None:
    """Returns the path of a shard without a parquet, without its ending; None for other files.

    The number of a TFRecord file such as `train.tfrecord-00000-of-00008` stays in its partition key.
    """
    if _NUMBERED.search(path):
        return path
    ending = next((suffix for suffix in LONE_SUFFIXES if path.endswith(suffix)), None)
    return path.removesuffix(ending) if ending else None


def key_of(path: str, root: str) -> str:
    """Returns the partition key of a shard: its path below the root, e.g. `part-1/00017`.

    Args:
        path: The shard's path (or URI), ending in `.parquet`.
        root: The path (or URI) of the input.

    Raises:
        ShardError: The file is not a parquet below the root, or its path is not a safe partition key.
    """
    prefix = root if root.endswith("/") or not root else f"{root}/"
    if not path.startswith(prefix) or not path.endswith(SUFFIX):
        raise ShardError(f"{path!r} is not a shard: expected a path ending in {SUFFIX} below {root!r}.")
    return check_key(path[len(prefix) : -len(SUFFIX)])


def uri_of(root_uri: str, key: str) -> str:
    """Returns the path or URI of a shard: the inverse of `key_of`.

    Args:
        root_uri: The path or URI of the input, with or without a trailing slash.
        key: A partition key.

    Raises:
        ShardError: The key is not safe.
    """
    return below(root_uri, check_key(key)) + SUFFIX


def below(root_uri: str, key: str) -> str:
    """Returns the path or URI of a shard without its ending; the key must be checked."""
    return f"{root_uri}{key}" if root_uri.endswith("/") or not root_uri else f"{root_uri}/{key}"


def check_key(key: str) -> str:
    """Returns a partition key, unless it could lead out of the root or Dagster cannot store it.

    Args:
        key: A partition key.

    Raises:
        ShardError: It has empty, `.` or `..` segments (so a leading slash too), a control character,
            something that Dagster forbids (such as `...`), is no Unicode, or too long.
    """
    if _PLAIN.fullmatch(key) and "..." not in key:
        return key
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        why = "has an empty, `.` or `..` part"
    elif bad := [text for text in FORBIDDEN if text in key]:
        why = f"holds {bad[0]!r}, which Dagster forbids in a partition key"
    elif _CONTROLS.search(key):
        why = "holds a control character"
    elif any(0xD800 <= ord(letter) < 0xE000 for letter in key):
        why = "is not UTF-8"
    elif len(key.encode()) > _MAX_KEY or any(len(part.encode()) > _MAX_SEGMENT for part in key.split("/")):
        why = f"is longer than {_MAX_KEY} bytes, or a part of it than {_MAX_SEGMENT}"
    else:
        return key
    raise ShardError(f"The shard {key[:300]!a} cannot be a partition: its path {why}. Rename the file.")
