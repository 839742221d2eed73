"""Embeds many small images in one run, and checks that its memory and open files do not grow.

    python -m torture.soak --images 100000

The shards are copies of one: the test is about the run, not about the images.
"""

import argparse
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from boring_assets.sample_data import write_sample_data
from torture.outputs import EMBEDDINGS, Place
from torture.report import finish

# Memory that varies with read-ahead, open shards and the allocator.
_SLACK_MB = 150
_SLACK_FILES = 16
_TICK_SECONDS = 0.2


@dataclass
class Watch:
    """Samples of a process.

    Attributes:
        memory: Resident MiB, with its children.
        files: Open descriptors.
        threads: Threads.
        done: Shards committed at that time.
    """

    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    def sample(self, process: psutil.Process, done: int) -> None:
        """Adds a sample."""
        family = [process, *process.children(recursive=True)]
        memory = sum(one.memory_info().rss for one in family) / 2**20
        files, threads = process.num_fds(), process.num_threads()
        self.memory.append(memory)
        self.files.append(files)
        self.threads.append(threads)
        self.done.append(done)

    def growth(self, values: list[float] | list[int], shards: int) -> float:
        """Returns how far the highest value of the last third is above that of shards 10% to 40%."""
        early = [value for value, done in zip(values, self.done, strict=True) if 0.1 <= done / shards < 0.4]
        late = [value for value, done in zip(values, self.done, strict=True) if 0.7 <= done / shards < 1]
        return max(late) - max(early) if early and late else float("nan")


def main() -> None:
    """Runs the test and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shards = max(10, options.images // options.per_shard)
    rows = options.images // shards
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        _write_input(folder / "input", shards, rows, options.seed)
        output = folder / "out"
        place = Place(
            folder / "soak" / "home", str(folder / "input"), str(output), LocalFileSystem(), str(output)
        )
        started, watch = time.monotonic(), Watch()
        # The batches of one that `Place` sets would only take longer.
        run = place.start(BORING_BATCH_SIZE="64", BORING_READ_AHEAD_MB="64")
        assert isinstance(run, subprocess.Popen)
        process = psutil.Process(run.pid)
        while run.poll() is None:
            with suppress(psutil.NoSuchProcess):  # it, or a child of it, has just ended
                watch.sample(process, len(list((output / EMBEDDINGS).glob("*.parquet"))))
            time.sleep(_TICK_SECONDS)
        seconds = time.monotonic() - started
        violations = [place.log()] if run.wait() else []
        violations += _check_rows(output, shards, rows)
    growth = {what: watch.growth(getattr(watch, what), shards) for what in ("memory", "files", "threads")}
    for what, most in (("memory", _SLACK_MB), ("files", _SLACK_FILES), ("threads", _SLACK_FILES)):
        if not growth[what] <= most:
            violations.append(f"{what} grew by {growth[what]:.0f}, more than {most}")
    figures = {
        "images": shards * rows,
        "shards": shards,
        "seconds": f"{seconds:.0f}",
        "images a second": f"{shards * rows / seconds:.0f}",
        "highest memory, MiB": f"{max(watch.memory):.0f}",
        "growth of memory, MiB": f"{growth['memory']:+.0f}",
        "highest open files": max(watch.files),
        "growth of open files": f"{growth['files']:+.0f}",
        "growth of threads": f"{growth['threads']:+.0f}",
    }
    finish("Soak", figures, violations)


def _write_input(folder: Path, shards: int, rows: int, seed: int) -> None:
    """Writes copies of one shard; each copy is its own file, with its own times."""
    (first,) = write_sample_data(folder, 1, rows, "webdataset", broken=2, image_size=32, seed=seed)
    for number in range(1, shards):
        for path in sorted(folder.glob(f"{first.stem}*")):
            (folder / path.name.replace(first.stem, f"{number:05}", 1)).write_bytes(path.read_bytes())


def _check_rows(output: Path, shards: int, rows: int) -> list[str]:
    """Returns a violation if rows are not accounted for."""
    files = sorted((output / EMBEDDINGS).glob("*.parquet"))
    embedded = sum(pq.ParquetFile(path).metadata.num_rows for path in files)
    failed = sum(
        pq.ParquetFile(path).metadata.num_rows for path in (output / "image_failures").glob("*.parquet")
    )
    if (len(files), embedded, failed) == (shards, shards * (rows - 2), shards * 2):
        return []
    return [
        f"{len(files)} of {shards} shards, {embedded} embedded and {failed} failed of {shards * rows} rows"
    ]


if __name__ == "__main__":
    main()
