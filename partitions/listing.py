"""Lists the files below a root, with size, time and version.

S3 lists a thousand names in a request, and each request needs the last name of the one before. If there are
more, the rest is split at folders, or at numbers where all files are in one folder. The parts are listed in
parallel.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from boring_assets.storage.root import Root

# Below the connections that a client keeps open, see boring_assets/storage/root.py.
_AT_ONCE = 16
_MODIFIED_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class File(NamedTuple):
    """The facts of a file; the entry of the listing takes ten times the memory.

    Attributes:
        size: In bytes.
        modified: When it was last written, in seconds since the epoch; 0 where the storage does not say.
        version: Changes with the file: a local file's size and time, an ETag, or else size and time.
    """

    size: int
    modified: float
    version: str


def list_files(
    root: Root, wanted: Callable[[str], bool], refuse: Callable[[str, OSError], None]
) -> Iterator[tuple[str, File]]:
    """Yields path and facts of each file below a root, in no order.

    Args:
        root: What to list.
        wanted: Returns whether a file is wanted, by its path.
        refuse: Called with each local folder that cannot be read, and the error.

    Raises:
        OSError: It cannot be listed; other backends than the local one may raise anything.
    """
    if isinstance(root.fs, LocalFileSystem):
        yield from _list_local(root.path, wanted, refuse)
    elif hasattr(root.fs, "call_s3"):
        yield from _list_s3(root, wanted)
    else:
        # Some filesystems cache listings for ever, and the sensor's process lives long.
        root.fs.invalidate_cache()
        for path, facts in root.fs.find(root.path, detail=True).items():
            if wanted(path):
                yield path, file_of(facts)


def local_file(path: str) -> File:
    """The facts of a local file; a link is followed.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    stat = os.stat(path)  # noqa: PTH116 - a Path for each of many thousands costs more than the call
    return File(stat.st_size, stat.st_mtime_ns / 1e9, f"{stat.st_size} {stat.st_mtime_ns}")


def file_of(facts: Mapping[str, Any]) -> File:
    """The facts of a file, from an entry of a filesystem's listing."""
    modified = _modified(facts)
    known = facts.get("ETag") or facts.get("etag")
    version = str(known).strip('"') if known else f"{facts['size']} {modified}"
    return File(facts["size"], modified, version)


def _modified(facts: Mapping[str, Any]) -> float:
    for name in _MODIFIED_FIELDS:
        value = facts.get(name)
        if isinstance(value, str) and value:
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _list_local(
    root: str, wanted: Callable[[str], bool], refuse: Callable[[str, OSError], None]
) -> Iterator[tuple[str, File]]:
    """Lists like `find`, but reports folders that cannot be read, and uses the time of a link's target."""

    def stop(error: OSError) -> None:
        if error.filename == root:
            raise error
        if not isinstance(error, FileNotFoundError):  # the folder was deleted meanwhile
            refuse(error.filename, error)

    for folder, folders, names in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        prefix = os.path.join(folder, "")  # noqa: PTH118
        for name in names:
            path = prefix + name
            if wanted(path):
                try:
                    yield path, local_file(path)
                except FileNotFoundError:  # deleted since the folder was read, or a link to nowhere
                    continue


class _S3Listing:
    """One root's listing on S3, in the order of names."""

    def __init__(self, root: Root, wanted: Callable[[str], bool]) -> None:
        self._fs, self._wanted = root.fs, wanted
        self._bucket, key, _ = root.fs.split_path(root.path)
        self.prefix = f"{key}/" if key else ""

    def page(self, prefix: str = "", **more: str) -> dict[str, Any]:
        """One request's answer: up to a thousand names."""
        return dict(
            self._fs.call_s3(
                "list_objects_v2",
                Bucket=self._bucket,
                Prefix=prefix or self.prefix,
                **more,
                **self._fs.req_kw,
            )
        )

    def files(self, page: Mapping[str, Any], end: str | None = None) -> Iterator[tuple[str, File]]:
        """The wanted files of a page, up to the name of one."""
        for entry in page.get("Contents", ()):
            path = f"{self._bucket}/{entry['Key']}"
            if (end is None or entry["Key"] <= end) and self._wanted(path):
                yield path, file_of({"size": entry["Size"], **entry})

    def span(self, names: tuple[str, str | None]) -> list[tuple[str, File]]:
        """The wanted files whose names come after one and not after another."""
        start, end = names
        found: list[tuple[str, File]] = []
        page = self.page(StartAfter=start)
        while True:
            found += self.files(page, end)
            last = page.get("Contents", [{"Key": start}])[-1]["Key"]
            if not page.get("IsTruncated") or (end is not None and last >= end):
                return found
            page = self.page(ContinuationToken=page["NextContinuationToken"])

    def cuts(self) -> list[str]:
        """Returns names at which to split the listing. Any names work; these give parts of similar size."""
        prefix, folders, names = self.prefix, [], []
        for _ in range(5):  # a single folder in a single folder, and so on
            page = self.page(prefix, Delimiter="/")
            folders = [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
            names = [*folders, *(entry["Key"] for entry in page.get("Contents", ()))]
            if len(names) != 1 or not folders:
                break
            prefix = folders[0]
        if len(folders) > 1 and not page.get("IsTruncated"):
            return folders
        number = re.match(r"\D*", min(names, default=prefix)[len(prefix) :])
        stem = prefix + (number[0] if number else "")
        return sorted({*folders, *(f"{stem}{two:02d}" for two in range(1, 100))})


def _list_s3(root: Root, wanted: Callable[[str], bool]) -> Iterator[tuple[str, File]]:
    listing = _S3Listing(root, wanted)
    page = listing.page()
    yield from listing.files(page)
    if not page.get("IsTruncated"):
        return
    names = [entry["Key"] for entry in page["Contents"]]
    # A few services (S3's own directory buckets) answer in no order, and cannot begin at a name.
    cuts = [cut for cut in listing.cuts() if cut > names[-1]] if names == sorted(names) else []
    if not cuts:
        while page.get("IsTruncated"):
            page = listing.page(ContinuationToken=page["NextContinuationToken"])
            yield from listing.files(page)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in pool.map(listing.span, pairwise([names[-1], *cuts, None])):
            yield from found
