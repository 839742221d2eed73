"""Measures an input of many shards: discovery, registration, sensor ticks, status, web UI, a backfill.

    python -m benchmarks.catalogue [--shards 100000] [--folders 100] [--s3 20000] [--folder DIR]

A shard is a small parquet without images and a stats file. Nothing is embedded: the materializations are
written to Dagster's storage, and runs stay in the queue. Each step runs in its own process. The memory is how
far its peak is above its memory after the imports; where the table says "whole", it is the whole peak.

`--s3` also measures the discovery on SeaweedFS, in one folder and in `--folders` folders, with and without a
delay of `--latency` milliseconds for each request. `--steps` selects steps.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.catalogue_steps import (
    count_states,
    discover_all,
    names,
    register_all,
    settings_of,
    store_events,
    tick,
    write_local,
    write_s3,
)
from benchmarks.table import print_table
from boring_assets.datasets import ASSET_KEY
from boring_assets.settings import Settings
from tests import waiting
from tests.e2e import processes
from tests.e2e.processes import Home
from tests.e2e.test_backfill import LAUNCH
from tests.faulty_proxy import FaultyProxy
from tests.seaweed import Seaweed

_STEPS = ("discover", "ticks", "backfill", "done")
_MIB = 2**20
_NODE = "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { %s } } }"
_ASSET = "query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset { %s } } }"
_UI = {
    "partitions by status": _NODE
    % """assetPartitionStatuses { ... on DefaultPartitionStatuses {
        materializedPartitions failedPartitions unmaterializedPartitions materializingPartitions } }""",
    "the asset's health": _ASSET % "assetHealth { assetHealth materializationStatus }",
    "counts of partitions": _NODE
    % "partitionStats { numMaterialized numPartitions numFailed numMaterializing }",
    "all partition keys": _NODE % "partitionKeysByDimension { name partitionKeys }",
    "the last 100 materializations": _NODE % "assetMaterializations(limit: 100) { partition timestamp }",
}
_BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status error { message } } } }"""


class Report:
    """A table whose rows are also printed at once."""

    def __init__(self) -> None:
        self.rows = [["step", "seconds", "memory, MiB", ""]]

    def add(self, step: str, seconds: float, mib: float | None = None, remark: str = "") -> None:
        """Adds a row."""
        memory = "" if mib is None else f"{mib:,.0f}"
        self.rows.append([step, f"{seconds:,.1f}", memory, remark])
        print(*self.rows[-1], sep="  ", flush=True)


def in_new_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Calls a function in a new process; returns its result, seconds, and the growth of its peak in MiB."""
    # A home that has opened its storage cannot be sent.
    arguments = tuple(Home(one.root) if isinstance(one, Home) else one for one in arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, *arguments).result()


def _measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    import boring_assets.definitions
    import boring_assets.storage.root

    del boring_assets
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now, see proc(5)
    start = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result, seconds, int(status["VmHWM"].split()[0]) / 1024 - before / _MIB


class SlowProxy(FaultyProxy):
    """Delays each request, like a storage that is far away."""

    def draw(self) -> str | None:
        """Delays the request; none fails."""
        time.sleep(self.stall_seconds)
        return super().draw()


def measure_s3(report: Report, folder: Path, shards: int, folders: int, latency: float) -> None:
    """Measures discovery on SeaweedFS, with and without latency."""
    with (
        Seaweed(folder / "seaweed") as server,
        SlowProxy(server.endpoint, {}, stall_seconds=latency) as proxy,
    ):
        for count in (0, folders):
            os.environ |= server.env
            uri = server.new_prefix()
            start = time.perf_counter()
            write_s3(uri, names(shards, count))
            where = f"S3, {shards:,} shards in {count or 1} folders"
            report.add(f"{where}: writing", time.perf_counter() - start, None, f"{2 * shards:,} objects")
            for endpoint, held in (
                (server.endpoint, ""),
                (proxy.endpoint, f", {1000 * latency:.0f} ms a request"),
            ):
                os.environ["AWS_ENDPOINT_URL"] = endpoint
                before = proxy.requests
                found, seconds, mib = in_new_process(discover_all, uri)
                assert found == shards
                requests = f"{proxy.requests - before} requests" if held else ""
                report.add(f"{where}: discovery{held}", seconds, mib, requests)


def measure_ticks(report: Report, home: Home, stems: list[str], settings: Settings) -> None:
    cursor, ticks, most, peak, size = "", 0, 0.0, 0.0, 0
    start = time.perf_counter()
    while True:
        (requests, cursor), seconds, mib = in_new_process(tick, home, settings, cursor)
        most, peak, size = max(most, seconds), max(peak, mib), max(size, len(cursor))
        if not requests:
            break
        ticks += 1
    remark = f"{ticks} ticks, the longest {most:.1f} s; cursor up to {size / 1024:,.0f} KiB"
    report.add("sensor ticks until all shards are requested", time.perf_counter() - start, peak, remark)
    _, seconds, mib = in_new_process(tick, home, settings, cursor)
    report.add("a tick with nothing new", seconds, mib)
    write_local(home.input, ["new"])
    (requests, cursor), seconds, mib = in_new_process(tick, home, settings, cursor)
    report.add("a tick with one new shard", seconds, mib, f"{requests} run requested")
    write_local(home.input, stems[len(stems) // 2 :][:1], seed=1)
    (requests, cursor), seconds, mib = in_new_process(tick, home, settings, cursor)
    report.add("a tick with one changed shard", seconds, mib, f"{requests} run requested")


def run_status(report: Report, home: Home, what: str) -> None:
    start = time.perf_counter()
    with (home.root / "status.txt").open("w") as log:
        process = psutil.Popen(
            [str(processes.SCRIPTS / "boring-assets"), "status"], env=home.env(), stdout=log, stderr=log
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    first_line = (home.root / "status.txt").read_text().splitlines()[0].split()
    report.add(f"`boring-assets status`, {what}, whole", seconds, peak / _MIB, " ".join(first_line[:2]))


def ask_ui(report: Report, server: processes.Webserver, what: str) -> None:
    for name, query in _UI.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            answer = server.ask(query, key={"path": ASSET_KEY.path})
            times.append(time.perf_counter() - start)
        sizes = f"first request; then {min(times[1:]):.2f} s; {len(json.dumps(answer)) / 1024:,.0f} KiB"
        report.add(f"{name}, {what}", times[0], _tree("dagster-webserver") / _MIB, sizes)


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _tree(name: str) -> int:
    """Returns the memory of a child process and its children."""
    mine = [one for one in psutil.Process().children() if any(name in part for part in one.cmdline())]
    return sum(_memory(one) for child in mine for one in (child, *child.children(recursive=True)))


def measure_backfill(report: Report, home: Home, per_run: int) -> None:
    """Measures a backfill of all partitions until its runs are in the queue; none of them starts."""
    keys = home.instance.get_dynamic_partitions("shards")
    expected = -(-len(keys) // per_run)
    with home.webserver(partitions_per_run=str(per_run)) as server:
        ask_ui(report, server, "all new")
        start = time.perf_counter()
        params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        report.add(
            "launching a backfill of all partitions in the UI",
            time.perf_counter() - start,
            None,
            f"{len(keys):,} partitions",
        )
        with home.daemon(partitions_per_run=str(per_run)):
            start, last, peak = time.perf_counter(), -1, 0
            while (count := home.instance.get_runs_count()) < expected:
                peak = max(peak, _tree("dagster-daemon"))
                if count != last:
                    print(f"  {time.perf_counter() - start:.0f} s: {count} runs", flush=True)
                    last = count
                error = server.ask(_BACKFILL, id=launched["backfillId"])["partitionBackfillOrError"]["error"]
                assert not error, error
                time.sleep(5)
            seconds = time.perf_counter() - start
            report.add(
                f"until its {expected} runs are in the queue", seconds, peak / _MIB,
                f"{1000 * seconds / len(keys):.1f} ms a partition; memory of the daemon with its code server",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--s3", type=int, default=0, help="number of shards on SeaweedFS; 0 skips it")
    parser.add_argument(
        "--latency", type=float, default=50, help="delay of each request to S3, in milliseconds"
    )
    parser.add_argument("--per-run", type=int, default=1000, help="maximum number of partitions in a run")
    parser.add_argument(
        "--folder", help="folder for temporary files; in /dev/shm, SQLite does not wait for a disk"
    )
    parser.add_argument("--steps", nargs="+", choices=_STEPS, default=_STEPS)
    args = parser.parse_args()
    waiting.HANG_SECONDS = 3600
    report = Report()
    work = Path(tempfile.mkdtemp(dir=args.folder, prefix="catalogue-"))
    try:
        if args.s3:
            measure_s3(report, work, args.s3, args.folders, args.latency / 1000)
        if args.shards:
            measure_local(report, work, args)
    finally:
        shutil.rmtree(work)
    print_table(report.rows)


def measure_local(report: Report, work: Path, args: argparse.Namespace) -> None:
    home = Home.make(work / "home")
    config = home.root / "dagster" / "dagster.yaml"
    sections = yaml.safe_load(config.read_text())
    sections["concurrency"]["runs"] = {"max_concurrent_runs": 0}
    config.write_text(yaml.safe_dump(sections))
    stems, per_run = names(args.shards, args.folders), args.per_run
    settings = settings_of(home, partitions_per_run=per_run)
    start = time.perf_counter()
    write_local(home.input, stems)
    report.add(f"writing {args.shards:,} shards to the local disk", time.perf_counter() - start)
    if "discover" in args.steps:
        found, seconds, mib = in_new_process(discover_all, str(home.input))
        assert found == args.shards
        report.add(f"discovery of {found:,} shards, local disk", seconds, mib)
    count, seconds, mib = in_new_process(register_all, home, settings)
    report.add(f"discovery and registration of {count:,}", seconds, mib)
    if "ticks" in args.steps:
        measure_ticks(report, home, stems, settings)
        run_status(report, home, "all new")
    if "backfill" in args.steps:
        measure_backfill(report, home, per_run)
    if "done" in args.steps:
        measure_done(report, home, settings, args)


def measure_done(report: Report, home: Home, settings: Settings, args: argparse.Namespace) -> None:
    """Measures the same once each shard has a materialization."""
    folder = home.root / "dagster"
    before = sum(path.stat().st_size for path in folder.rglob("*.db*"))
    count, seconds, _ = in_new_process(store_events, home, settings, args.shards)
    grown = sum(path.stat().st_size for path in folder.rglob("*.db*")) - before
    remark = f"{1000 * seconds / count:.1f} ms, {grown / count / 1024:.1f} KiB each"
    report.add(f"storing {count:,} materializations", seconds, None, remark)
    counts, seconds, mib = in_new_process(count_states, home, settings)
    report.add("the states of all shards, first", seconds, mib, f"{counts}")
    counts, seconds, mib = in_new_process(count_states, home, settings)
    report.add("the states of all shards, again", seconds, mib)
    run_status(report, home, "all done")
    _, seconds, mib = in_new_process(tick, home, settings)
    report.add("a tick, all done", seconds, mib)
    with home.webserver() as server:
        ask_ui(report, server, "all done")


if __name__ == "__main__":
    main()
