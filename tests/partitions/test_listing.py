"""Long listings: that nothing is lost where they are cut, and how much memory they take."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from boring_assets.storage.root import open_root
from partitions import listing
from partitions.discovery import discover
from partitions.listing import file_of
from tests.seaweed import Seaweed

_PER_SHARD = 1600
"""Bytes: path, size, time and version of a parquet and a tar, the name of the stats file, and the shard."""


def test_memory_grows_with_the_shards_and_not_with_other_files(tmp_path: Path) -> None:
    """The layout `files` has many thousand images beside each parquet."""
    for shard in range(200):
        for suffix in (".parquet", ".tar", "_stats.json"):
            (tmp_path / f"{shard:05d}{suffix}").touch()
    few = _peak(tmp_path)
    images = tmp_path / "00000"
    images.mkdir()
    (images / "0.jpg").touch()
    for number in range(1, 5000):
        os.link(images / "0.jpg", images / f"{number}.jpg")
    many = _peak(tmp_path)
    assert few < 200 * _PER_SHARD
    assert many < few + 5000 * 200, "the names of one folder, which os.walk holds, and no more"


def _peak(folder: Path) -> int:
    root = open_root(str(folder))
    discover(root, quiet_seconds=0)  # what is made once
    tracemalloc.start()
    try:
        assert len(discover(root, quiet_seconds=0).shards) == 200
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"size": 3, "ETag": '"abc"', "LastModified": None}, (3, 0.0, "abc")),
        ({"size": 3, "mtime": 7}, (3, 7.0, "3 7.0")),
        ({"size": 3, "updated": "1970-01-01T00:01:00+00:00"}, (3, 60.0, "3 60.0")),
        ({"size": 0}, (0, 0.0, "0 0.0")),
    ],
)
def test_storage_errors_read_the_same_for_all_backends(facts: dict, expected: tuple) -> None:
    assert file_of(facts) == expected


def test_a_long_listing_is_split_and_nothing_is_lost(
    s3_env: Seaweed, s3_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one request's thousand names, in one folder and in several, some of them odd."""
    root, names = open_root(s3_env.new_prefix()), [f"{number:05d}" for number in range(0, 26_000, 20)]
    odd = ["0", "99", "Z", "a b", "zz/00000", "é", "_hidden", "part/.hidden"]
    flat = [f"{root.path}/flat/{name}.parquet" for name in [*names, *odd]]
    deep = [f"{root.path}/part-{number % 3}/sub/{number:05d}.parquet" for number in range(12)]
    s3_env.filesystem().pipe(dict.fromkeys([*flat, *deep], b"x"))
    monkeypatch.setattr(S3FileSystem, "find", None)  # its listing is one request after another

    def keys(below: str) -> set[str]:
        s3_calls.clear()
        found = discover(open_root(f"{root.uri}{below}"), quiet_seconds=0)
        assert set(s3_calls) == {"ListObjectsV2"}
        assert len(found.shards) == len({shard.key for shard in found.shards})
        return {shard.key for shard in found.shards}

    shown = {name for name in [*names, *odd] if "hidden" not in name}
    assert keys("/flat") == shown
    assert len(s3_calls) > 30, "it was not cut at numbers"
    everything = {f"flat/{name}" for name in shown} | {path[len(root.path) + 1 : -8] for path in deep}
    assert keys("") == everything
    assert 4 < len(s3_calls) < 12, "it was not cut at folders"
    assert len(keys("/part-0")) == 4
    assert len(s3_calls) == 1


def test_an_unsorted_listing_is_read_page_by_page(s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's directory buckets answer so, and cannot begin at a name."""
    root = open_root(s3_env.new_prefix())
    s3_env.filesystem().pipe({f"{root.path}/{number:04d}.parquet": b"x" for number in range(1100)})
    page = listing._S3Listing.page

    def shuffled(self: listing._S3Listing, prefix: str = "", **more: str) -> dict[str, Any]:
        assert "StartAfter" not in more
        answer = page(self, prefix, **more)
        return {**answer, "Contents": answer["Contents"][::-1]}

    monkeypatch.setattr(listing._S3Listing, "page", shuffled)
    assert len(discover(root, quiet_seconds=0).shards) == 1100
