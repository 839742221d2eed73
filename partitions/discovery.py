"""Which shards lie below an input, which of them are still being written, and which version each has.

A shard is a parquet; where a folder has none, each of its tars and TFRecord files.
img2dataset writes `NNNNN_stats.json` after everything else of a shard: a shard with it is complete.
One without it counts as complete when nobody has touched it for a quiet time.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError, StorageError
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root, check_readable
from partitions.listing import File, file_of, list_files, local_file
from partitions.own_files import is_marker, output_around, own_files
from partitions.shards import BARE, SUFFIX, check_key, key_of, uri_of

_TAR = ".tar"
_STATS = "_stats.json"


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

    Files and folders whose name starts with `.` or `_` (such as img2dataset's `_tmp`) are passed over, and so
    are outputs and exports of this project (see `own_files`). Of the listing only the shards' own files are
    kept, each in some 300 bytes.

    Args:
        root: The input.
        quiet_seconds: A shard without `_stats.json`, or an empty one, counts as growing until its parquet
            and its tar are unchanged for this long.
        now: The time to measure that from, in seconds since the epoch; None is the machine's clock.

    Returns:
        The shards; nothing where the root is there and empty.

    Raises:
        StorageError: The root is missing, is a file, lies in an output of this project, or cannot be listed.
    """
    now = time.time() if now is None else now
    shards: list[Shard] = []
    growing: list[str] = []
    refused: dict[str, str] = {}
    files, finished = _list(root, refused)
    for stem, path in _shard_files(files, refused).items():
        parquet = files[path]
        try:
            key = key_of(stem + SUFFIX, root.path)
        except ShardError as error:
            refused[_printable(path)] = str(error)
            continue
        tar = files.get(stem + _TAR) if path.endswith(SUFFIX) else None
        quiet = now - max(parquet.modified, tar.modified if tar else 0.0) >= quiet_seconds
        if quiet or (parquet.size and stem in finished):
            shards.append(_shard(root, key, path, parquet, tar))
        else:
            growing.append(key)
    return Discovery(sorted(shards, key=lambda shard: shard.key), sorted(growing), refused)


def _shard_files(files: Mapping[str, File], refused: dict[str, str]) -> dict[str, str]:
    """The file of each shard, by its path without the suffix.

    A tar or a TFRecord file without a parquet is a shard of its own, unless its folder has any parquet: there
    img2dataset writes the tar first, and what lies about besides is not meant.
    """
    found = {path.removesuffix(SUFFIX): path for path in files if path.endswith(SUFFIX)}
    with_parquet = {path.rpartition("/")[0] for path in found}
    bare_ones = (path for path in files if BARE.search(path) and path.rpartition("/")[0] not in with_parquet)
    for path in sorted(bare_ones):
        bare = BARE.search(path)
        assert bare is not None
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
    if output := output_around(root, path):
        raise ShardError(
            f"{path} lies in {output}, which is an output of boring_assets. Delete its partition."
        )
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


def _find_bare(root: Root, stem: str) -> tuple[str, File] | None:
    """A tar or TFRecord file that is a shard of its own, as `_shard_files` has it: its path and facts."""
    for suffix in ("",) if BARE.search(stem) else (_TAR, ".tfrecord", ".tfrecords"):
        facts = _info(root, stem + suffix)
        if facts is not None:
            beside = root.fs.ls(stem.rpartition("/")[0] or root.fs.root_marker, detail=False)
            return None if any(path.endswith(SUFFIX) for path in beside) else (stem + suffix, facts)
    return None


def _list(root: Root, refused: dict[str, str]) -> tuple[dict[str, File], set[str]]:
    """The parquet, tar and TFRecord files below a root, by path; and what the stats files stand beside."""
    base = len(root.path.rstrip("/")) + 1
    files: dict[str, File] = {}
    finished: set[str] = set()

    markers: list[str] = []

    def ours(path: str) -> bool:
        if is_marker(path):
            return True
        hidden = any(segment.startswith((".", "_")) for segment in path[base:].split("/"))
        return not hidden and (path.endswith((SUFFIX, _STATS)) or BARE.search(path) is not None)

    def refuse(folder: str, error: OSError) -> None:
        refused[_printable(folder)] = str(storage_error(error, folder, "list"))

    if output := output_around(root, root.path):
        raise StorageError(
            f"{root.uri} lies in {output}, which is an output of boring_assets and no input. Give the folder "
            "or bucket prefix that holds the shards."
        )
    try:
        for path, file in list_files(root, ours, refuse):
            if is_marker(path):
                markers.append(path)
            elif path.endswith(_STATS):
                finished.add(path.removesuffix(_STATS))
            elif path != root.path:  # a root that is a file; some storages answer an empty folder with itself
                files[path] = file
    except Exception as error:
        raise storage_error(error, root.uri, "list") from error
    if not files:
        check_readable(root)
    own = own_files(files, markers)
    if own and len(own) == len(files):
        refused[root.uri] = "all parquet files below it are outputs or exports of boring_assets, and no input"
    return {path: file for path, file in files.items() if path not in own} if own else files, finished


def _info(root: Root, path: str) -> File | None:
    """The same as `_list` has, for one file; None where there is no such file."""
    try:
        if isinstance(root.fs, LocalFileSystem):
            return local_file(path)
        info = root.fs.info(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise storage_error(error, f"{path} of {root.uri}", "read") from error
    return file_of(info) if info["type"] == "file" else None


def _shard(root: Root, key: str, path: str, parquet: File, tar: File | None) -> Shard:
    facts = f"parquet {parquet.version} tar {tar.version if tar else None}"
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


def _printable(path: str) -> str:
    """The path with whatever is no UTF-8 or no visible letter escaped: it is logged, stored and shown."""
    clean = path.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in clean)
