"""Which shards lie below an input, which of them are still being written, and which version each has.

A shard is a parquet; where a folder has none, each of its tars and TFRecord files.
img2dataset writes `NNNNN_stats.json` after everything else of a shard: a shard with it is complete.
One without it counts as complete when nobody has touched it for a quiet time.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError
from partitions.root import Root, check_readable, storage_error
from partitions.shards import BARE, SUFFIX, check_key, key_of, uri_of

_TAR = ".tar"
_STATS = "_stats.json"
_MODIFIED_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True)
class Discovery:
    """What one look at an input found.

    Attributes:
        shards: The complete shards, sorted by key.
        growing: Keys of the parquet files that are not complete yet, sorted.
        refused: Path of each parquet file that cannot be a partition, and of each folder that cannot be
            read, and why.
    """

    shards: list[Shard]
    growing: list[str]
    refused: dict[str, str]


def discover(root: Root, *, quiet_seconds: float, now: float | None = None) -> Discovery:
    """Finds the shards below a root, by one recursive listing.

    Files and folders whose name starts with `.` or `_` (such as img2dataset's `_tmp`) are passed over.

    Args:
        root: The input.
        quiet_seconds: A shard without `_stats.json`, or an empty one, counts as growing until its parquet
            and its tar are unchanged for this long.
        now: The time to measure that from, in seconds since the epoch; None is the machine's clock.

    Returns:
        The shards; nothing where the root is there and empty.

    Raises:
        StorageError: The root is missing, is a file, or cannot be listed.
    """
    now = time.time() if now is None else now
    shards: list[Shard] = []
    growing: list[str] = []
    refused: dict[str, str] = {}
    files = _list(root, refused)
    for stem, path in _shard_files(files, refused).items():
        parquet = files[path]
        try:
            key = key_of(stem + SUFFIX, root.path)
        except ShardError as error:
            refused[_printable(path)] = str(error)
            continue
        tar = files.get(stem + _TAR) if path.endswith(SUFFIX) else None
        quiet = now - max(_modified(parquet), _modified(tar or {})) >= quiet_seconds
        if quiet or (parquet["size"] and stem + _STATS in files):
            shards.append(_shard(root, key, path, parquet, tar))
        else:
            growing.append(key)
    return Discovery(sorted(shards, key=lambda shard: shard.key), sorted(growing), refused)


def _shard_files(files: Mapping[str, Mapping[str, Any]], refused: dict[str, str]) -> dict[str, str]:
    """The file of each shard, by its path without the suffix.

    A tar or a TFRecord file without a parquet is a shard of its own, unless its folder has any parquet: there
    img2dataset writes the tar first, and what lies about besides is not meant.
    """
    found = {path.removesuffix(SUFFIX): path for path in files if path.endswith(SUFFIX)}
    with_parquet = {path.rpartition("/")[0] for path in found}
    for path in sorted(files):
        bare = BARE.search(path)
        if not bare or path.rpartition("/")[0] in with_parquet:
            continue
        stem = path if bare[1] else path[: bare.start()]
        if stem in found:
            refused[_printable(path)] = f"{found[stem]} has the same name. Rename one."
        else:
            found[stem] = path
    return found


def find_shard(root: Root, key: str) -> Shard:
    """Finds one shard by its key, with two to four requests; for many keys call `discover` instead.

    Args:
        root: The input.
        key: A partition key; whether the shard is complete is not asked.

    Returns:
        The shard, with its version as of now.

    Raises:
        ShardError: There is no such shard, or the key is not safe.
        StorageError: The storage cannot be read.
    """
    path = uri_of(root.path, check_key(key))
    root.fs.invalidate_cache()
    parquet = _info(root, path)
    if parquet is None:
        check_readable(root)
        if bare := _find_bare(root, path.removesuffix(SUFFIX)):
            return _shard(root, key, *bare, None)
        raise ShardError(
            f"There is no shard {uri_of(root.uri, key)}: it was moved or deleted. "
            "Put it back, or delete its partition."
        )
    return _shard(root, key, path, parquet, _info(root, path.removesuffix(SUFFIX) + _TAR))


def _find_bare(root: Root, stem: str) -> tuple[str, Mapping[str, Any]] | None:
    """A tar or TFRecord file that is a shard of its own, as `_shard_files` has it: its path and facts."""
    for suffix in ("",) if BARE.search(stem) else (_TAR, ".tfrecord", ".tfrecords"):
        facts = _info(root, stem + suffix)
        if facts is not None:
            beside = root.fs.ls(stem.rpartition("/")[0] or root.fs.root_marker, detail=False)
            return None if any(path.endswith(SUFFIX) for path in beside) else (stem + suffix, facts)
    return None


def _list(root: Root, refused: dict[str, str]) -> dict[str, Mapping[str, Any]]:
    """The parquet, tar and stats files below a root, by path, with their facts."""
    try:
        if isinstance(root.fs, LocalFileSystem):
            files = _list_local(root.path, refused)
        else:
            # Listings are remembered for ever by some filesystems, and the sensor's process is a long one.
            root.fs.invalidate_cache()
            files = root.fs.find(root.path, detail=True)
    except Exception as error:
        raise storage_error(error, root.uri, "list") from error
    if not files or root.path in files:
        check_readable(root)
    base = len(root.path.rstrip("/")) + 1
    return {
        path: facts
        for path, facts in files.items()
        if path != root.path  # some storages answer an empty folder with itself
        and _is_ours(path)
        and not any(segment.startswith((".", "_")) for segment in path[base:].split("/"))
    }


def _is_ours(name: str) -> bool:
    return name.endswith((SUFFIX, _STATS)) or BARE.search(name) is not None


def _list_local(root: str, refused: dict[str, str]) -> dict[str, Mapping[str, Any]]:
    """Like `find`, which on local disks passes over folders it may not read and dates links, not files."""
    files: dict[str, Mapping[str, Any]] = {}

    def stop(error: OSError) -> None:
        if error.filename == root:
            raise error
        if not isinstance(error, FileNotFoundError):  # a folder that went away while we looked is no trouble
            refused[_printable(error.filename)] = str(storage_error(error, error.filename, "list"))

    for folder, folders, names in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        for name in names:
            if _is_ours(name):
                path = os.path.join(folder, name)  # noqa: PTH118
                try:
                    files[path] = _facts(os.stat(path))  # noqa: PTH116
                except FileNotFoundError:  # deleted since the folder was read, or a link to nowhere
                    continue
    return files


def _info(root: Root, path: str) -> Mapping[str, Any] | None:
    """The same facts as `_list` has, for one file; None where there is no such file."""
    try:
        if isinstance(root.fs, LocalFileSystem):
            return _facts(os.stat(path))  # noqa: PTH116
        info = root.fs.info(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise storage_error(error, f"{path} of {root.uri}", "read") from error
    return info if info["type"] == "file" else None


def _facts(stat: os.stat_result) -> Mapping[str, Any]:
    return {
        "size": stat.st_size,
        "mtime": stat.st_mtime_ns / 1e9,
        "version": f"{stat.st_size} {stat.st_mtime_ns}",
    }


def _shard(
    root: Root, key: str, path: str, parquet: Mapping[str, Any], tar: Mapping[str, Any] | None
) -> Shard:
    facts = f"parquet {_version(parquet)} tar {_version(tar) if tar else None}"
    version = hashlib.sha256(facts.encode()).hexdigest()[:16]
    suffix = path[len(uri_of(root.path, key).removesuffix(SUFFIX)) :]
    return Shard(
        key=key,
        uri=uri_of(root.uri, key).removesuffix(SUFFIX) + suffix,
        fs=root.fs,
        path=path,
        root=root.path,
        version=version,
    )


def _version(facts: Mapping[str, Any]) -> str:
    """What changes with the file: a local file's size and time, an ETag, or else size and time."""
    known = facts.get("version") or facts.get("ETag") or facts.get("etag")
    return str(known).strip('"') if known else f"{facts['size']} {_modified(facts)}"


def _modified(facts: Mapping[str, Any]) -> float:
    """When the file was last written, in seconds since the epoch; 0 where the storage does not say."""
    for name in _MODIFIED_FIELDS:
        value = facts.get(name)
        if isinstance(value, str) and value:
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _printable(path: str) -> str:
    """The path with whatever is no UTF-8 or no visible letter escaped: it is logged, stored and shown."""
    clean = path.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in clean)
