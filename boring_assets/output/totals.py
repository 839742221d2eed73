"""`metadata.json`: what an output holds in all, derived from what is committed.

Any number of runs may write it at once, each after its own last commit. One that has counted must not write
over one that has counted later: on a local disk they take turns, on S3 a write is refused when the file has
changed since the count began, and elsewhere each looks again after it has written.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets import __version__
from boring_assets.errors import StorageError
from boring_assets.output.files import EMBEDDINGS, committed_facts, file_versions
from boring_assets.output.identity import NAMES
from boring_assets.storage.errors import storage_error
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root
from partitions.shards import uri_of

_TOTALS, _CACHE = "metadata.json", ".counts.json"
_TRIES = 10
_FACTS = ("embedded", "failed", *NAMES)


def refresh_totals(root: Root) -> dict[str, Any]:
    """Counts what is committed and writes `metadata.json`, if it does not say so already.

    Only files that changed since the last count are opened.

    Args:
        root: The output.

    Returns:
        What it says now.

    Raises:
        StorageError: The output cannot be read or written.
    """
    try:
        with _turn(root):
            return _refresh(root)
    except Exception as error:
        raise storage_error(error, root.uri, "read") from error


def _refresh(root: Root) -> dict[str, Any]:
    tries = 0
    while True:
        before, conditions = _read(root)
        files = file_versions(root, EMBEDDINGS)
        counts, known = _count(root, files)
        totals = _sum(counts)
        if counts != known:
            write_bytes(root, _CACHE, json.dumps(counts).encode())
        if before and before | {"timestamp": ""} == totals | {"timestamp": ""}:
            return before
        if not _write(root, totals, conditions):
            continue  # another run has written since, and so got on
        tries += 1
        if tries == _TRIES or file_versions(root, EMBEDDINGS) == files:
            return totals


@contextmanager
def _turn(root: Root) -> Iterator[None]:
    """Lets one run after another count, where the output's folder can be locked."""
    folder = None
    if isinstance(root.fs, LocalFileSystem):
        root.fs.makedirs(root.path, exist_ok=True)
        folder = os.open(root.path, os.O_RDONLY)
        with suppress(OSError):  # some network disks lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)


def _read(root: Root) -> tuple[dict[str, Any], dict[str, str]]:
    """What `metadata.json` says, empty where there is none; on S3 also what it must still be when written."""
    path = f"{root.path}/{_TOTALS}"
    conditions = {}
    if "s3" in root.fs.protocol:
        try:
            conditions = {"IfMatch": root.fs.info(path)["ETag"]}
        except FileNotFoundError:
            conditions = {"IfNoneMatch": "*"}
    try:
        said = json.loads(root.fs.cat_file(path))
    except (FileNotFoundError, ValueError):
        return {}, conditions
    return said if isinstance(said, dict) else {}, conditions


def _write(root: Root, totals: dict[str, Any], conditions: dict[str, str]) -> bool:
    """Writes `metadata.json`; False where another run has done so since it was read."""
    try:
        write_bytes(root, _TOTALS, json.dumps(totals, indent=2).encode(), **conditions)
    except StorageError as error:
        if _is_refused(error.__cause__):
            return False
        raise
    return True


def _is_refused(error: BaseException | None) -> bool:
    """Whether S3 has refused a write by its condition."""
    response = getattr(getattr(error, "__cause__", None), "response", {})
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)


def _count(root: Root, files: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of each file, from the last count where the file is still the same; and that last count."""
    last = _read_cache(root)
    known = dict(last)
    changed = [key for key, version in files.items() if known.get(key, {}).get("version") != version]
    with ThreadPoolExecutor(4 if isinstance(root.fs, LocalFileSystem) else 16) as pool:
        for key, facts in zip(changed, pool.map(lambda key: _facts(root, key), changed), strict=True):
            known[key] = {"version": files[key], **facts}
    return {key: known[key] for key in files}, last


def _facts(root: Root, key: str) -> dict[str, Any]:
    facts = committed_facts(root, f"{EMBEDDINGS}/{uri_of('', key)}")
    return {name: facts.get(name) for name in _FACTS}


def _read_cache(root: Root) -> dict[str, Any]:
    try:
        known = json.loads(root.fs.cat_file(f"{root.path}/{_CACHE}"))
    except (FileNotFoundError, ValueError):
        return {}
    # What another version of the project has cached may lack a fact.
    wanted = {"version", *_FACTS}
    pairs = known.items() if isinstance(known, dict) else ()
    return {key: facts for key, facts in pairs if isinstance(facts, dict) and facts.keys() == wanted}


def _sum(counts: dict[str, Any]) -> dict[str, Any]:
    shards = [facts for facts in counts.values() if facts["embedded"] is not None]  # the others are not ours

    def the_one(name: str) -> Any:
        """The value that all files share; a list where they differ."""
        said = {json.dumps(facts[name], sort_keys=True) for facts in shards if facts[name] is not None}
        values = [json.loads(value) for value in sorted(said, key=lambda one: (len(one), one))]
        return values[0] if len(values) == 1 else values or None

    return {
        "num_samples": sum(facts["embedded"] for facts in shards),
        "num_failed": sum(facts["failed"] for facts in shards),
        "num_shards": len(shards),
        **{name: the_one(name) for name in NAMES},
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "boring_assets_version": __version__,
    }
