"""`metadata.json`: what an output holds in all, derived from what is committed.

Any number of runs may write it at once. Each counts what is there, writes, and looks again: the run that
commits last also counts last, so what stays is right.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets import __version__
from partitions.root import Root, storage_error
from resources.embeddings_io import EMBEDDINGS
from resources.files import committed_facts, write_bytes
from resources.identity import NAMES

_CACHE = ".counts.json"
_TRIES = 10
_FACTS = ("embedded", "failed", *NAMES)


def refresh_totals(root: Root) -> dict[str, Any]:
    """Counts what is committed and writes `metadata.json`.

    Only files that changed since the last count are opened.

    Args:
        root: The output.

    Returns:
        What was written.

    Raises:
        StorageError: The output cannot be read or written.
    """
    try:
        for _ in range(_TRIES):
            files = _list(root)
            counts = _count(root, files)
            totals = _sum(counts)
            write_bytes(root, "metadata.json", json.dumps(totals, indent=2).encode())
            if _list(root) == files:
                break
        write_bytes(root, _CACHE, json.dumps(counts).encode())
    except Exception as error:
        raise storage_error(error, root.uri, "read") from error
    return totals


def _list(root: Root) -> dict[str, str]:
    """Path of each embeddings file, and what changes with it."""
    root.fs.invalidate_cache()
    found = root.fs.find(f"{root.path}/{EMBEDDINGS}", detail=True)
    return {
        path: str(info.get("ETag") or (info["size"], info.get("mtime") or info.get("created")))
        for path, info in sorted(found.items())
        if path.endswith(".parquet")
    }


def _count(root: Root, files: dict[str, str]) -> dict[str, Any]:
    """The facts of each file, from the last count where the file is still the same."""
    known = _read_cache(root)
    changed = [path for path, version in files.items() if known.get(path, {}).get("version") != version]
    with ThreadPoolExecutor(4 if isinstance(root.fs, LocalFileSystem) else 16) as pool:
        for path, facts in zip(changed, pool.map(lambda path: _facts(root, path), changed), strict=True):
            known[path] = {"version": files[path], **facts}
    return {path: known[path] for path in files}


def _facts(root: Root, path: str) -> dict[str, Any]:
    facts = committed_facts(root, path.removeprefix(f"{root.path}/"))
    return {name: facts.get(name) for name in _FACTS}


def _read_cache(root: Root) -> dict[str, Any]:
    try:
        known = json.loads(root.fs.cat_file(f"{root.path}/{_CACHE}"))
    except (FileNotFoundError, ValueError):
        return {}
    # What another version of the project has cached may lack a fact.
    wanted = {"version", *_FACTS}
    pairs = known.items() if isinstance(known, dict) else ()
    return {path: facts for path, facts in pairs if isinstance(facts, dict) and facts.keys() == wanted}


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
