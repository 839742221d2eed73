"""`metadata.json`: the totals of an output, computed from the committed files.

The counts of the partitions are kept in `.counts/`, in up to 256 files by a hash of the partition key, and
the sums of those files in `.counts/sums.json`. A run that committed some partitions reads and writes only the
files that hold those. Any number of runs may do so at once, see `state.py`: each reads the committed files
after it has read the counts that it changes, so an older count never replaces a newer one.
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from boring_assets import __version__
from boring_assets.output.files import committed_facts, file_versions
from boring_assets.output.identity import NAMES
from boring_assets.output.state import Json, locked, read_json, update_json
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.files import version_of
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS
from partitions.shards import uri_of

COUNTS = ".counts"
"""Folder of the stored counts."""
_TOTALS, _SUMS = "metadata.json", f"{COUNTS}/sums.json"
_BUCKETS = 256
_FORMAT = 1

Entry = list[Any]
"""Version of a partition's file, rows embedded, rows failed, and its model as JSON.

A file that this project did not write has only a version.
"""


def refresh_totals(root: Root, changed: Collection[str] | None = None) -> dict[str, Any]:
    """Brings `metadata.json` up to date and returns its content.

    Args:
        root: The output.
        changed: Keys of the partitions that were committed or removed. None lists the whole output and looks
            at every file that changed since it was counted; it is also what a first call does.

    Raises:
        StorageError: The output cannot be read or written.
    """
    with storage_errors(root.uri, "read"), locked(root):
        sums = read_json(root, _SUMS)
        if changed is None or sums.get("format") != _FORMAT:
            _count_all(root)
        else:
            _count(root, changed)
        return _write_totals(root)


def _count(root: Root, keys: Collection[str]) -> None:
    """Counts some partitions again; files that are gone count as removed."""
    buckets: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        buckets[_bucket_of(key)].append(key)
    _in_threads(root, lambda bucket: _update_bucket(root, bucket, buckets[bucket]), buckets)
    _sum_up(root, buckets)


def _count_all(root: Root) -> None:
    """Counts every partition whose file has changed, and removes the entries of files that are gone."""
    listed: dict[str, dict[str, str]] = defaultdict(dict)
    for key, version in file_versions(root, EMBEDDINGS).items():
        listed[_bucket_of(key)][key] = version
    buckets = {*listed, *_stored_buckets(root)}

    def compare(bucket: str) -> None:
        there, known = listed[bucket], _read_bucket(root, bucket)
        changed = [key for key in {*there, *known} if known.get(key, [None])[0] != there.get(key)]
        if changed:
            _update_bucket(root, bucket, changed)

    _in_threads(root, compare, buckets)
    _sum_up(root, buckets)


def _stored_buckets(root: Root) -> list[str]:
    """Returns the buckets that have a file."""
    try:
        paths = root.fs.ls(f"{root.path}/{COUNTS}", detail=False)
    except FileNotFoundError:
        return []
    names = [path.rpartition("/")[2] for path in paths]
    return [name.removesuffix(".json") for name in names if name != _SUMS.rpartition("/")[2]]


def _update_bucket(root: Root, bucket: str, keys: Collection[str]) -> None:
    """Counts some partitions of a bucket from their files."""

    def change(before: Json) -> Json:
        after = _decode(before)
        for key in keys:
            entry = _entry(root, key)
            if entry is None:
                after.pop(key, None)
            else:
                after[key] = entry
        return _encode(after)

    update_json(root, _path(bucket), change)


def _entry(root: Root, key: str) -> Entry | None:
    """Returns the entry of one partition's file; None if there is no file."""
    path = f"{EMBEDDINGS}/{uri_of('', key)}"
    try:
        version = version_of(root.fs.info(f"{root.path}/{path}"))
    except FileNotFoundError:
        return None
    # The version first: a file that is replaced in between is read again by the next full count.
    facts = committed_facts(root, path)
    if facts.get("embedded") is None:
        return [version]
    model = {name: facts.get(name) for name in NAMES}
    return [version, facts["embedded"], facts["failed"], json.dumps(model, sort_keys=True)]


def _sum_up(root: Root, buckets: Iterable[str]) -> None:
    """Adds up some buckets, and stores their sums with the sums of the others."""

    def change(before: Json) -> Json:
        names = list(buckets)
        read = _in_threads(root, lambda name: _read_bucket(root, name), names)
        sums = dict(before["buckets"]) if before.get("format") == _FORMAT else {}
        for name, entries in zip(names, read, strict=True):
            sums.pop(name, None)
            if entries:
                sums[name] = _sum(entries.values())
        return {"format": _FORMAT, "buckets": sums}

    update_json(root, _SUMS, change)


def _sum(entries: Iterable[Entry]) -> Json:
    ours = [entry for entry in entries if len(entry) > 1]
    models = Counter(entry[3] for entry in ours)
    return {
        "shards": len(ours),
        "embedded": sum(entry[1] for entry in ours),
        "failed": sum(entry[2] for entry in ours),
        "models": dict(models),
    }


def _write_totals(root: Root) -> Json:
    def change(before: Json) -> Json:
        totals = _totals(read_json(root, _SUMS).get("buckets") or {})
        same = before | {"timestamp": ""} == totals | {"timestamp": ""}
        return before if same else totals

    return update_json(root, _TOTALS, change, indent=2)


def _totals(buckets: Mapping[str, Json]) -> Json:
    sums = list(buckets.values())
    models = [json.loads(model) for model in sorted({model for each in sums for model in each["models"]})]
    return {
        "num_samples": sum(each["embedded"] for each in sums),
        "num_failed": sum(each["failed"] for each in sums),
        "num_shards": sum(each["shards"] for each in sums),
        **{name: _shared([model[name] for model in models]) for name in NAMES},
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "boring_assets_version": __version__,
    }


def _shared(values: list[Any]) -> Any:
    """Returns the value that all models share; a list if they differ, and None if none has it."""
    texts = {json.dumps(value, sort_keys=True) for value in values if value is not None}
    different = [json.loads(text) for text in sorted(texts, key=lambda text: (len(text), text))]
    return different[0] if len(different) == 1 else different or None


def _bucket_of(key: str) -> str:
    return f"{zlib.crc32(key.encode()) % _BUCKETS:02x}"


def _path(bucket: str) -> str:
    return f"{COUNTS}/{bucket}.json"


def _read_bucket(root: Root, bucket: str) -> dict[str, Entry]:
    return _decode(read_json(root, _path(bucket)))


def _encode(entries: Mapping[str, Entry]) -> Json:
    """Returns the content of a bucket's file: each model once, and its number in the entries."""
    models = sorted({entry[3] for entry in entries.values() if len(entry) > 1})
    numbers = {model: number for number, model in enumerate(models)}
    shards = {key: [*entry[:3], *(numbers[model] for model in entry[3:])] for key, entry in entries.items()}
    return {"models": models, "shards": shards}


def _decode(bucket: Json) -> dict[str, Entry]:
    """Returns the entries of a bucket; empty for a damaged file, whose partitions are then read again."""
    try:
        models = bucket["models"]
        return {
            key: [*entry[:3], *(models[at] for at in entry[3:])]
            for key, entry in bucket["shards"].items()
            if len(entry) in (1, 4)
        }
    except (KeyError, TypeError, IndexError, AttributeError):
        return {}


def _in_threads(root: Root, work: Any, items: Iterable[Any]) -> list[Any]:
    with ThreadPoolExecutor(4 if isinstance(root.fs, LocalFileSystem) else 16, "count") as pool:
        return list(pool.map(work, items))
