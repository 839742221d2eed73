"""Finds the shards below an input, with their versions, and which of them are still being written.

A shard is a parquet file, or a tar or TFRecord file without a parquet. img2dataset writes `NNNNN_stats.json`
after everything else of a shard: a shard with it is complete. A tar on its own is complete when it has its
end mark. Any other shard is complete when it has not changed for a quiet time.
"""

import hashlib
import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.samples import USUAL_NAMES, ColumnNames, Shard
from boring_assets.errors import ShardError, StorageError
from boring_assets.storage.errors import storage_error, storage_errors
from boring_assets.storage.root import Root, check_readable
from boring_assets.wording import printable
from partitions.listing import File, file_of, list_files, local_file
from partitions.other_files import suffix_of, what_to_do, why_refused
from partitions.own_files import is_marker, output_around, own_files
from partitions.shards import LONE_SUFFIXES, SUFFIX, below, check_key, key_of, lone_stem, uri_of

_TAR = ".tar"
_STATS = "_stats.json"
_BESIDE_PARQUET = (_TAR, ".tfrecord")
_MAX_OTHER_SUFFIXES = 100
_PARALLEL_READS = 16
_END_MARK = bytes(512)
_HIDDEN = re.compile("/[._]")


@dataclass(frozen=True)
class Discovery:
    """The result of listing an input.

    Attributes:
        shards: The complete shards, sorted by key.
        growing: Keys of the shards that are not complete yet, sorted.
        refused: Path of each file that cannot be a shard although it looks like one, and of each folder that
            cannot be read, and why.
        others: Files of other kinds: one path for each ending of a name.
    """

    shards: list[Shard]
    growing: list[str]
    refused: dict[str, str]
    others: dict[str, str] = field(default_factory=dict)

    def explain_empty(self, uri: str) -> str:
        """Returns why there are no complete shards: what the input holds instead, and what to do."""
        parts = [f"There are no complete shards below {uri}."]
        if self.growing:
            count = f"{len(self.growing)} shards" if len(self.growing) > 1 else "One shard"
            parts.append(
                f"{count} may still be growing: without a `_stats.json`, a shard is complete when it is "
                "unchanged for --quiet-seconds. Wait, or set that to 0."
            )
        parts += [f"{path}: {why}" for path, why in list(self.refused.items())[:3]]
        if not self.growing and (self.others or not self.refused):
            parts += what_to_do(self.others, uri)
        parts.append(
            "Expected: parquet files (with an image column, URLs, or a tar or folder beside each), tars "
            "or TFRecord files."
        )
        return " ".join(parts)


def discover(
    root: Root, *, quiet_seconds: float, now: float | None = None, columns: ColumnNames = USUAL_NAMES
) -> Discovery:
    """Finds the shards below a root, by one recursive listing.

    Files and folders whose name starts with `.` or `_` (such as img2dataset's `_tmp`) are skipped, and so are
    outputs and exports of this project (see `own_files`). Of the listing only the shards' own files are kept,
    each in some 300 bytes.

    Args:
        root: The input.
        quiet_seconds: A shard without `_stats.json`, or an empty one, counts as growing until its parquet
            and its tar are unchanged for this long.
        now: The time to measure that from, in seconds since the epoch; None is the machine's clock.
        columns: Which columns of the shards to read.

    Raises:
        StorageError: The root is missing, is a file, lies in an output of this project, or cannot be listed.
    """
    now = time.time() if now is None else now
    listed = _list(root)
    shards: list[Shard] = []
    fresh: dict[str, Shard] = {}
    files, refused = listed.files, listed.refused
    stray = _stray_tars(files)
    for stem, path in _shard_files(files, refused):
        try:
            key = key_of(stem + SUFFIX, root.path)
        except ShardError as error:
            refused[printable(path)] = str(error)
            continue
        tar = files.get(stem + _TAR) if path.endswith(SUFFIX) else None
        quiet = now - max(files[path].modified, tar.modified if tar else 0.0) >= quiet_seconds
        complete = quiet or (files[path].size and stem in listed.finished)
        if path in stray and complete:
            refused[printable(path)] = (
                "It has no parquet of the same name, while other tars of its folder have one. If its "
                "download was cut off, repeat it; if it is a separate shard, move it to another folder."
            )
        elif complete:
            shards.append(_shard(root, key, path, files[path], tar, columns))
        else:
            fresh[key] = _shard(root, key, path, files[path], tar, columns)
    whole = _whole_tars(shard for shard in fresh.values() if shard.path not in stray)
    shards += [fresh[key] for key in whole]
    growing = sorted(fresh.keys() - whole)
    return Discovery(sorted(shards, key=lambda shard: shard.key), growing, refused, listed.others)


def _shard_files(files: Mapping[str, File], refused: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yields each shard's path without the ending, and its file."""
    lone: dict[str, str] = {}
    for path in sorted(path for path in files if not path.endswith(SUFFIX)):
        if why := why_refused(path):
            refused[printable(path)] = why
        elif (stem := lone_stem(path)) is not None:
            parquet = stem + SUFFIX
            other = parquet if parquet in files else lone.setdefault(stem, path)
            if other != path and not (other == parquet and path.endswith(_BESIDE_PARQUET)):
                refused[printable(path)] = f"{other} has the same name, and is the shard. Rename one."
    for path in files:
        if path.endswith(SUFFIX):
            yield path.removesuffix(SUFFIX), path
    yield from lone.items()


def _stray_tars(files: Mapping[str, File]) -> set[str]:
    """Returns tars and TFRecord files without a parquet, in folders where others have one."""
    paired = {
        posixpath.dirname(path)
        for path in files
        if path.endswith(_BESIDE_PARQUET) and f"{lone_stem(path)}{SUFFIX}" in files
    }
    return {
        path
        for path in files
        if paired
        and posixpath.dirname(path) in paired
        and (stem := lone_stem(path)) is not None
        and f"{stem}{SUFFIX}" not in files
    }


def _whole_tars(shards: Iterable[Shard]) -> set[str]:
    """Keys of those shards that are tars with their end mark, which is written last."""

    def is_whole(shard: Shard) -> bool:
        try:
            return bool(shard.fs.cat_file(shard.path, start=-len(_END_MARK)) == _END_MARK)
        except Exception:  # e.g. deleted meanwhile: it then counts as growing
            return False

    tars = [shard for shard in shards if shard.path.endswith(_TAR)]
    if not tars:
        return set()
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return {shard.key for shard, whole in zip(tars, pool.map(is_whole, tars), strict=True) if whole}


def find_shard(root: Root, key: str, columns: ColumnNames = USUAL_NAMES) -> Shard:
    """Returns the present version of one shard, with two to four requests; for many, call `discover`.

    Args:
        root: The input.
        key: A partition key; the shard need not be complete.
        columns: Which columns of the shard to read.

    Raises:
        ShardError: There is no such shard, or the key is not safe.
        StorageError: The storage cannot be read.
    """
    path = uri_of(root.path, check_key(key))
    root.fs.invalidate_cache()
    if output := output_around(root, path):
        raise ShardError(
            f"{path} lies in {output}, which is an output of boring_assets. Delete its partition."
        )
    parquet = _info(root, path)
    if parquet is None:
        check_readable(root)
        if lone := _find_lone(root, path.removesuffix(SUFFIX)):
            return _shard(root, key, *lone, None, columns)
        raise ShardError(
            f"There is no shard {uri_of(root.uri, key)}: it was moved or deleted. "
            "Put it back, or delete its partition."
        )
    return _shard(root, key, path, parquet, _info(root, path.removesuffix(SUFFIX) + _TAR), columns)


def _find_lone(root: Root, stem: str) -> tuple[str, File] | None:
    """Path and facts of a tar or TFRecord file that is a shard without a parquet."""
    for suffix in ("",) if lone_stem(stem) == stem else LONE_SUFFIXES:
        path = stem + suffix
        facts = _info(root, path)
        if facts is not None:
            folder = posixpath.dirname(stem) or root.fs.root_marker
            beside = dict.fromkeys(root.fs.ls(folder, detail=False), facts)
            return None if path in _stray_tars(beside) else (path, facts)
    return None


@dataclass
class _Listing:
    """The files below a root: shards by path, stems of stats files, one file of each other kind."""

    files: dict[str, File] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def _list(root: Root) -> _Listing:
    base = len(root.path.rstrip("/")) + 1
    listing = _Listing()
    markers: list[str] = []

    def is_wanted(path: str) -> bool:
        if is_marker(path):
            return True
        by_parquet = path.endswith((SUFFIX, _STATS))
        if not by_parquet and path[path.rfind(".") :] in listing.others:
            return False  # there may be very many images
        if _HIDDEN.search(path, base - 1):
            return False
        if by_parquet or lone_stem(path) is not None or why_refused(path):
            return True
        suffix = suffix_of(path)
        if suffix not in listing.others and len(listing.others) < _MAX_OTHER_SUFFIXES and path != root.path:
            listing.others[suffix] = path
        return False

    def refuse(folder: str, error: OSError) -> None:
        listing.refused[printable(folder)] = str(storage_error(error, folder, "list"))

    if output := output_around(root, root.path):
        raise StorageError(
            f"{root.uri} lies in {output}, which is an output of boring_assets, not an input. Give the "
            "folder or bucket prefix that holds the shards."
        )
    with storage_errors(root.uri, "list"):
        for path, file in list_files(root, is_wanted, refuse):
            if is_marker(path):
                markers.append(path)
            elif path.endswith(_STATS):
                listing.finished.add(path.removesuffix(_STATS))
            elif path != root.path:  # a root that is a file; some storages answer an empty folder with itself
                listing.files[path] = file
    if not listing.files:
        check_readable(root)
    own = own_files(listing.files, markers)
    if own and len(own) == len(listing.files):
        listing.refused[root.uri] = (
            "all parquet files below it are outputs or exports of boring_assets, not inputs."
        )
    for path in own:
        del listing.files[path]
    return listing


def _info(root: Root, path: str) -> File | None:
    """Returns the facts of one file; None if it does not exist."""
    try:
        if isinstance(root.fs, LocalFileSystem):
            return local_file(path)
        info = root.fs.info(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise storage_error(error, f"{path} of {root.uri}", "read") from error
    return file_of(info) if info["type"] == "file" else None


def _shard(root: Root, key: str, path: str, parquet: File, tar: File | None, columns: ColumnNames) -> Shard:
    facts = f"parquet {parquet.version} tar {tar.version if tar else None}"
    version = hashlib.sha256(facts.encode()).hexdigest()[:16]
    suffix = path[len(below(root.path, key)) :]
    return Shard(
        key=key,
        uri=below(root.uri, key) + suffix,
        fs=root.fs,
        path=path,
        root=root.path,
        version=version,
        columns=columns,
    )
