"""Measures a split dataset of a million shards: listing, registration, sensor ticks, status, web UI.

    python -m benchmarks.million --work DIR [--shards 1000000] [--folders 100] [--split 100000] [--postgres]

A shard is a hard link to a small parquet without images, and a stats file. Nothing is embedded: the rows of
the materializations are copies of one that Dagster stored, and the embeddings files are links to an empty
file. Each step runs in its own process. CPU seconds are user and system time of all its threads. The memory
is how far its peak is above its memory after the imports; where the table says "whole", it is the whole peak.
`--steps` selects steps; all files stay in DIR for the next call.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.catalogue import _UI, _memory, in_new_process
from benchmarks.catalogue_steps import count_states, names, settings_of, small_parquet
from benchmarks.million_steps import discover, first_tick, load_definitions, register, store_done
from benchmarks.table import machine, print_table
from boring_assets.datasets import Dataset
from tests import waiting
from tests.e2e.processes import PROJECT, SCRIPTS, Home, Webserver
from tests.postgres import Postgres

_MIB = 2**20
_STEPS = ("write", "discover", "register", "new", "done", "status", "tick", "ui")
_ALL = "{ assetNodes { assetKey { path } partitionStats { numMaterialized numPartitions numFailed } } }"


class Report:
    """A table whose rows are also printed at once."""

    def __init__(self) -> None:
        self.rows = [["step", "CPU s", "seconds", "MiB", ""]]

    def add(self, step: str, cpu: float, seconds: float, mib: float, remark: object = "") -> None:
        """Adds a row."""
        self.rows.append([step, f"{cpu:,.1f}", f"{seconds:,.1f}", f"{mib:,.0f}", f"{remark}"])
        print(*self.rows[-1], f"load {os.getloadavg()[0]:.0f}", sep="  ", flush=True)

    def step(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in a new process, and adds a row with its time and memory."""
        (result, cpu), seconds, mib = in_new_process(with_cpu, function, *arguments)
        self.add(name, cpu, seconds, mib, result)
        return result


def with_cpu(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.process_time()
    return function(*arguments), time.process_time() - start


def write_links(root: Path, stems: list[str]) -> None:
    """Writes a shard for each stem; the shards of a folder are hard links to its first one."""
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
    """Runs the command, with its imports; samples its memory every 50 ms."""
    start, peak = time.perf_counter(), 0
    with (home.root / "status.txt").open("w") as log:
        process = psutil.Popen([str(SCRIPTS / "boring-assets"), "status"], env=env, stdout=log, stderr=log)
        cpu = 0.0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            cpu = _cpu(process) or cpu
            time.sleep(0.05)
    first_line = (home.root / "status.txt").read_text().splitlines()[0].split()
    seconds = time.perf_counter() - start
    report.add("`boring-assets status`, whole", cpu, seconds, peak / _MIB, " ".join(first_line[:2]))


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _tree() -> Iterator[psutil.Process]:
    """Yields the webserver and its child processes."""
    for child in psutil.Process().children():
        if any("dagster-webserver" in part for part in child.cmdline()):
            yield from (child, *child.children(recursive=True))


def ask_ui(report: Report, server: Webserver) -> None:
    """Measures the queries of the asset page of a full part, and of the overview of all assets."""
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
    parser.add_argument("--work", type=Path, required=True, help="folder for all files; they stay there")
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--split", type=int, default=100_000)
    parser.add_argument(
        "--postgres", action="store_true", help="use PostgreSQL as Dagster's storage, not SQLite"
    )
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
    stems, steps, settings = names(args.shards, args.folders), args.steps, settings_of(home, split=args.split)
    if "write" in steps:
        write_links(home.input, stems)
    if "discover" in steps:
        assert report.step("listing", discover, home, settings) == args.shards
    if "register" in steps:
        report.step("listing and registration", register, home, settings)
    report.step("loading the definitions", load_definitions, home, settings)
    if "new" in steps:
        report.step("a tick, all new", first_tick, home, settings)
    if "done" in steps:
        report.step("storing the materializations", store_done, home, settings)
    env = home.env(split=str(args.split))
    if "status" in steps:
        report.step("the states of all shards, without imports", count_states, home, settings)
        run_status(report, home, env)
    if "tick" in steps:
        report.step("a tick, all done, first", first_tick, home, settings)
        report.step("a tick, all done", first_tick, home, settings)
    if "ui" in steps:
        with home.webserver(split=str(args.split)) as server:
            ask_ui(report, server)


if __name__ == "__main__":
    main()
