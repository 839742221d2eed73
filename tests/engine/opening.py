"""Small shards, and their images by row, for tests of how shards are opened."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.lookup import Lookup
from boring_assets.engine.inputs.sources import OpenShard, open_shard
from boring_assets.engine.samples import ColumnNames, Failure, Reason
from boring_assets.storage.root import open_root
from partitions.discovery import discover
from tests.engine.kinds import shard_at

Images = list[bytes | Failure]
KEYS = ["000000007", "000000003", "000000005"]
DATA = [b"seven", b"three", b"five"]


def images_of(path: Path, limits: Limits | None = None, **options: int) -> Images:
    """The images of a shard by row; each row must be answered exactly once."""
    opened = open_shard(shard_at(path), limits or Limits(), Fetcher(), **options)
    try:
        return _by_row(opened)
    finally:
        opened.close()


def _by_row(opened: OpenShard) -> Images:
    found = list(opened.images())
    assert sorted(row for row, _ in found) == list(range(opened.rows.num_rows))
    return [image for _, image in sorted(found, key=lambda pair: pair[0])]


def write(folder: Path, **columns: object) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), folder / "00000.parquet")
    return folder / "00000.parquet"


def reasons(images: Images) -> list[Reason | None]:
    return [image.reason if isinstance(image, Failure) else None for image in images]


def read(folder: Path, **names: Any) -> tuple[OpenShard, list[Any]]:
    """The folder's one shard and its images by row; `Lookup` must give the same images."""
    (shard,) = discover(open_root(str(folder)), quiet_seconds=0, columns=ColumnNames(**names)).shards
    opened = open_shard(shard, Limits(), Fetcher())
    images = _by_row(opened)
    lookup = Lookup(open_shard(shard, Limits(), Fetcher()))
    if not shard.path.endswith("tfrecord"):
        assert isinstance(lookup.read(len(images)), Failure)
        for row, image in enumerate(images):
            again = lookup.read(row)
            assert again == image or (isinstance(again, Failure) and isinstance(image, Failure))
    return opened, images
