"""What is kept of a listing, and how much memory that is."""

import os
import tracemalloc
from pathlib import Path

import pytest

from partitions.discovery import discover
from partitions.listing import file_of
from resources.storage import open_root

_PER_SHARD = 1600
"""Bytes: path, size, time and version of a parquet and a tar, the name of the stats file, and the shard."""


def test_memory_goes_with_the_shards_and_not_with_what_lies_beside_them(tmp_path: Path) -> None:
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
def test_what_backends_call_differently_is_told_alike(facts: dict, expected: tuple) -> None:
    assert file_of(facts) == expected
