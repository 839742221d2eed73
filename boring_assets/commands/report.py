"""What `boring-assets embed` and `retry` show: the progress bar over their runs, and the result."""

import os
import shlex
import shutil
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from boring_assets.engine.results import Progress as Counts
from boring_assets.engine.samples import Shard
from boring_assets.settings import COLUMN_SETTINGS, PREFIX, Settings
from boring_assets.shard_states import ShardStates, State
from boring_assets.wording import first_of, plain, some
from partitions.discovery import Discovery

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


@dataclass
class Summary:
    """The result of an `embed` or `retry` call: counts of what was committed."""

    shards: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)  # why, by key
    rows: int = 0
    embedded: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    retried: int = 0
    recovered: int = 0  # of those that were retried
    seconds: float = 0.0


def describe_model(settings: Settings) -> str:
    """Returns the settings that determine the embeddings, as text."""
    tag = f" {settings.pretrained}" if settings.pretrained else ""
    named = [f"{name}={value}" for name in COLUMN_SETTINGS if (value := getattr(settings, name))]
    columns = ", ".join(named) or "columns of the usual names"
    return f"model {settings.model}{tag}, precision {settings.precision}, {settings.output_dtype}, {columns}"


def print_left_out(console: Console, states: ShardStates, found: Discovery) -> None:
    """Prints which shards of the input are left out, and why."""
    paths: dict[str, list[str]] = {}
    for path, why in found.refused.items():
        paths.setdefault(why, []).append(path)
    left_out = [f"{first_of(some_paths)}: {why}" for why, some_paths in paths.items()]
    for state, why in ((State.GROWING, "still being written"), (State.RUNNING, "in another run now")):
        if keys := [key for key, one in states.states.items() if one is state]:
            left_out.append(f"{some(len(keys), 'shard')} {why}: {first_of(keys)}")
    for what in left_out:
        _line(console, "Left out", what, "yellow")


def print_summary(console: Console, settings: Settings, summary: Summary) -> None:
    """Prints the counts, the output and the next commands."""
    failed = sum(summary.failed.values())
    bad = len(summary.failed_shards)
    _line(console, "Shards", f"{summary.shards:,} embedded" + (f", {bad:,} failed" if bad else ""))
    if summary.rows:
        rate = summary.rows / summary.seconds
        _line(console, "Images", f"{summary.rows:,}: {summary.embedded:,} embedded, {failed:,} failed")
        for reason, count in summary.failed.most_common():
            _line(console, " ", f"{count:>6,}  {reason}")
        took = f"{summary.seconds:,.1f} s, loading the model included"
        _line(console, "Speed", f"{rate:,.0f} images a second over {took}")
        _line(console, "Output", f"{settings.output_dir.rstrip('/')}/image_embeddings/*.parquet")
    for key, why in summary.failed_shards.items():
        _line(console, "Failed", f"{key}: {why}", "red")
    console.print("\nNext:")
    if failed:
        _line(console, "", f"{_program('boring-assets')} failures {shlex.quote(settings.output_dir)}")
    _line(console, "", f"{_environment(settings)} {_program('dagster')} dev -m boring_assets.definitions")


def _program(name: str) -> str:
    """Returns the command for a program of this environment: its name, or else its path."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found and Path(found).parent.resolve() == beside.parent.resolve():
        return name
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _environment(settings: Settings) -> str:
    """Returns the variables for Dagster's UI to show the same partitions, quoted for a shell."""
    variables = {"DAGSTER_HOME": os.environ["DAGSTER_HOME"]}
    shown = (
        *("input_dir", "output_dir", "model", "pretrained", "precision", "output_dtype"),
        *("image_column", "key_column", "caption_column", "url_column"),
    )
    for name in shown:
        value = getattr(settings, name)
        if value != Settings.model_fields[name].default:
            variables[PREFIX + name.upper()] = value
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def _line(console: Console, label: str, text: str, style: str = "") -> None:
    """Prints one line, not wrapped, and not as rich's markup: names and errors come from the data."""
    indent = f"{label:<10}" if label else "  "
    console.print(Text.assemble((indent, style), plain(text)), soft_wrap=True)
