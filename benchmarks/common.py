"""What the sides of the end-to-end comparison share: the model, the meter, the shards."""

import json
import os
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

BATCH = 32
TINY = "boring-tiny"
TINY_DIR = Path(__file__).parent.parent / "boring_assets" / "tiny"
CORES = len(os.sched_getaffinity(0))


class Model(NamedTuple):
    """What to embed with: an open_clip model name and a checkpoint file, or `boring-tiny` and nothing."""

    name: str
    checkpoint: str


class Meter:
    """When how many images were embedded: `(time, images so far)`, one mark a batch."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def add(self, images: int) -> None:
        """Marks a batch."""
        self.reach(images + (self.marks[-1][1] if self.marks else 0))

    def reach(self, images: int) -> None:
        """Marks that so many are embedded in all."""
        self.marks.append((time.time(), images))


def count_images(folder: Path) -> int:
    """Images in a folder of shards, by their stats."""
    return sum(json.loads(path.read_text())["successes"] for path in folder.glob("*_stats.json"))


def parquet_twin(folder: Path) -> Path:
    """Where the same pictures lie in img2dataset's parquet layout, for sides that cannot read tars."""
    return folder.with_name(f"{folder.name}-parquet")


def write_parquet_twin(folder: Path) -> None:
    """Writes the pictures of a folder of tars in img2dataset's parquet layout beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    twin = parquet_twin(folder)
    twin.mkdir()
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            pictures = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # type: ignore[union-attr]
        rows = pq.read_table(path.with_suffix(".parquet")).append_column("jpg", pa.array(pictures))
        pq.write_table(rows, twin / f"{path.stem}.parquet", row_group_size=100)
