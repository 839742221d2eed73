"""What a million shards cost in one split dataset: listing, registration, ticks, status, the web UI.

    python -m benchmarks.million --work DIR [--shards 1000000] [--folders 100] [--split 100000] [--postgres]

Each shard is a hard link to a small parquet without images, with a stats file beside it. Nothing is embedded:
the materializations go straight into the tables of Dagster's storage, made from one that Dagster itself has
stored, and the embeddings files are links to an empty one. Each step is a process of its own, as it is in
use. CPU seconds are user and system of all its threads; memory is by how much its peak is above what it was
after the imports, or the whole where it says so. `--steps` does a part of it; what was made stays in DIR.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.catalogue import _UI, _memory, apart
from benchmarks.catalogue_steps import names, small_parquet
from benchmarks.million_steps import count_states, discover, load_definitions, register, store_done, tick
from benchmarks.table import machine, print_table
from boring_assets.datasets import Dataset
from tests import waiting
from tests.e2e.processes import PROJECT, SCRIPTS, Home, Webserver
from tests.postgres import Postgres

_MIB = 2**20
_STEPS = ("write", "discover", "register", "new", "done", "status", "tick", "ui")
_ALL = "{ assetNodes { assetKey { path } partitionStats { numMaterialized numPartitions numFailed } } }"


class Report:
    """The table, as it grows: each row is printed at once too."""

    def __init__(self) -> None:
        self.rows = [["step", "CPU s", "seconds", "MiB", ""]]

    def add(self, step: str, cpu: float, seconds: float, mib: float, remark: object = "") -> None:
        """One more row."""
        self.rows.append([step, f"{cpu:,.1f}", f"{seconds:,.1f}", f"{mib:,.0f}", f"{remark}"])
        print(*self.rows[-1], f"load {os.getloadavg()[0]:.0f}", sep="  ", flush=True)

    def step(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in a fresh process, and notes what it took."""
        (result, cpu), seconds, mib = apart(with_cpu, function, *arguments)
        self.add(name, cpu, seconds, mib, result)
        return result


def with_cpu(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.process_time()
    return function(*arguments), time.process_time() - start


def write_links(root: Path, stems: list[str]) -> None:
    """A shard for each stem; those of a folder are links, since a disk allows 65,000 to a file."""
    body = small_parquet()
    first: dict[Path, tuple[Path, Path]] = {}
    for stem in stems:
        path, stats = root / f"{stem}.parquet", root / f"{stem}_stats.json"
        if path.parent in first:
            for old, new in zip(first[path.parent], (path, stats), strict=True):
                os.link(old, new)
        else:
            path.parent.mkdir(parents=True)
            path.write_bytes(body)
            stats.write_bytes(b"{}")
            first[path.parent] = (path, stats)


def run_status(report: Report, home: Home, env: dict[str, str]) -> None:
    """The real command, with its imports; its peak memory is looked at every 50 ms."""
    start, peak = time.perf_counter(), 0
    with (home.root / "status.txt").open("w") as log:
        process = psutil.Popen([str(SCRIPTS / "boring-assets"), "status"], env=env, stdout=log, stderr=log)
        cpu = 0.0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            cpu = _cpu(process) or cpu
            time.sleep(0.05)
    said = (home.root / "status.txt").read_text().splitlines()[0].split()
    seconds = time.perf_counter() - start
    report.add("`boring-assets status`, whole", cpu, seconds, peak / _MIB, " ".join(said[:2]))


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _tree() -> Iterator[psutil.Process]:
    """The webserver with all that it started."""
    for child in psutil.Process().children():
        if any("dagster-webserver" in part for part in child.cmdline()):
            yield from (child, *child.children(recursive=True))


def ask_ui(report: Report, server: Webserver) -> None:
    """The queries of the asset page of a full part, and of the overview of all assets."""
    part = Dataset().of_part(1).embeddings
    asked: list[tuple[str, str, dict[str, Any]]] = [
        (name, query, {"key": {"path": list(part.path)}}) for name, query in _UI.items()
    ]
    asked.append(("counts of partitions of all parts", _ALL, {}))
    for name, query, variables in asked:
        times, before = [], sum(map(_cpu, _tree()))
        for _ in range(3):
            start = time.perf_counter()
            server.ask(query, **variables)
            times.append(time.perf_counter() - start)
        cpu = (sum(map(_cpu, _tree())) - before) / len(times)
        memory = sum(map(_memory, _tree())) / _MIB
        report.add(f"web UI: {name}", cpu, times[0], memory, f"then {min(times[1:]):.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where to work; what is made there stays")
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--split", type=int, default=100_000)
    parser.add_argument("--postgres", action="store_true", help="as Dagster's storage, not SQLite")
    parser.add_argument("--steps", nargs="+", choices=_STEPS, default=_STEPS)
    args = parser.parse_args()
    waiting.HANG_SECONDS = 3600
    report = Report()
    with ExitStack() as stack:
        config = PROJECT / "dagster.yaml"
        if args.postgres:
            server = stack.enter_context(Postgres())
            os.environ |= server.env(server.new_database())
            config = PROJECT / "deploy" / "postgres" / "dagster.yaml"
        there = (args.work / "dagster").exists()
        measure(report, Home(args.work) if there else Home.make(args.work, config), args)
    print(machine())
    print_table(report.rows)


def measure(report: Report, home: Home, args: argparse.Namespace) -> None:
    stems, split, steps = names(args.shards, args.folders), args.split, args.steps
    if "write" in steps:
        write_links(home.input, stems)
    if "discover" in steps:
        assert report.step("listing", discover, home, split) == args.shards
    if "register" in steps:
        report.step("listing and registration", register, home, split)
    report.step("loading the definitions", load_definitions, home, split)
    if "new" in steps:
        report.step("a tick, all new", tick, home, split)
    if "done" in steps:
        report.step("storing the materializations", store_done, home, split)
    env = home.env(split=str(split))
    if "status" in steps:
        report.step("the states, in a process that has its imports", count_states, home, split)
        run_status(report, home, env)
    if "tick" in steps:
        report.step("a tick, all done, first", tick, home, split)
        report.step("a tick, all done", tick, home, split)
    if "ui" in steps:
        with home.webserver(split=str(split)) as server:
            ask_ui(report, server)


if __name__ == "__main__":
    main()
