"""Small shards, and their images by row, for tests of how shards are opened."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.samples import Failure, Reason
from tests.engine.kinds import shard_at

Images = list[bytes | Failure]
KEYS = ["000000007", "000000003", "000000005"]
DATA = [b"seven", b"three", b"five"]


def images_of(path: Path, limits: Limits | None = None, **options: int) -> Images:
    """The images of a shard by row; each row must be answered exactly once."""
    opened = open_shard(shard_at(path), limits or Limits(), Fetcher(), **options)
    try:
        found = list(opened.images())
    finally:
        opened.close()
    assert sorted(row for row, _ in found) == list(range(opened.rows.num_rows))
    return [image for _, image in sorted(found, key=lambda pair: pair[0])]


def write(folder: Path, **columns: object) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), folder / "00000.parquet")
    return folder / "00000.parquet"


def reasons(images: Images) -> list[Reason | None]:
    return [image.reason if isinstance(image, Failure) else None for image in images]
