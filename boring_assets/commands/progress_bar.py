"""The terminal's progress bar over the runs of one command."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from boring_assets.engine.results import Progress as Counts
from boring_assets.engine.samples import Shard

_TICK_SECONDS = 0.25


class ProgressBar:
    """Images done, images a second, time left, failures; the runs add their samples to `counts`."""

    def __init__(
        self, console: Console, shards: list[Shard], most: int, counts: Counts | None = None
    ) -> None:
        self._shards, self._most = shards, most
        self.counts = counts or Counts()
        self._stop = threading.Event()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[images]}"),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            console=console, transient=not console.is_terminal, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("loading the model", total=None, images="0 images", rate="")
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._count, self._watch)]

    @property
    def done(self) -> int:
        """Samples that are embedded or failed so far."""
        return self.counts.embedded + self.counts.failed

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._show()
        self._bar.stop()

    def _count(self) -> None:
        """Reads the total from the shards' footers during the run; estimates it until all are read."""
        rows = 0
        with ThreadPoolExecutor(4) as pool:
            for number, count in enumerate(pool.map(self._rows, self._shards), 1):
                rows += count
                total = rows * len(self._shards) // number
                # Tars and TFRecord files do not say how many rows they have.
                known = min(total, self._most) if self._most else total
                self._bar.update(self._task, total=known or None)

    def _rows(self, shard: Shard) -> int:
        return 0 if self._stop.is_set() else count_rows(shard)

    def _watch(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            self._show()

    def _show(self) -> None:
        done, task = self.done, self._bar.tasks[0]
        # The last shards are still to be written when all images are embedded.
        text = "writing" if task.total and done >= task.total else "embedding"
        total = f"/{task.total:,.0f}" if task.total else ""
        failed = f", {self.counts.failed:,} failed" if self.counts.failed else ""
        speed = task.finished_speed or task.speed
        self._bar.update(
            self._task,
            completed=done,
            description=text if done else "loading the model",
            images=f"{done:,}{total} images{failed}",
            rate=f"{speed:,.0f} images/s" if speed else "",
        )


def count_rows(shard: Shard) -> int:
    """Returns the rows of a shard by its footer; 0 if it cannot be read, which its run reports."""
    with suppress(OSError, pa.ArrowException), shard.fs.open(shard.path, "rb") as file:
        return pq.read_metadata(file).num_rows
    return 0
