"""Shared by the sides of the end-to-end comparison: model, meter, shards."""

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
    """A model: an open_clip name and a checkpoint file, or `boring-tiny` without a checkpoint."""

    name: str
    checkpoint: str


class Meter:
    """Records `(time, images so far)` after each batch."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def add(self, images: int) -> None:
        """Records a batch of so many images."""
        self.reach(images + (self.marks[-1][1] if self.marks else 0))

    def reach(self, images: int) -> None:
        """Records the number of images embedded so far."""
        self.marks.append((time.time(), images))


def count_images(folder: Path) -> int:
    """Returns the number of images in a folder of shards, from their stats files."""
    return sum(json.loads(path.read_text())["successes"] for path in folder.glob("*_stats.json"))


def parquet_twin(folder: Path) -> Path:
    """Returns the folder with the same images in img2dataset's parquet layout, for sides without tars."""
    return folder.with_name(f"{folder.name}-parquet")


def write_parquet_twin(folder: Path) -> None:
    """Writes the images of a folder of tars in img2dataset's parquet layout, into a folder beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    twin = parquet_twin(folder)
    twin.mkdir()
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            pictures = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # type: ignore[union-attr]
        rows = pq.read_table(path.with_suffix(".parquet")).append_column("jpg", pa.array(pictures))
        pq.write_table(rows, twin / f"{path.stem}.parquet", row_group_size=100)
