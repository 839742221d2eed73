"""Runs a backfill of many small shards through Dagster's webserver and daemon, and checks the result.

    python -m benchmarks.many_shards [--shards 2000] [--images 5] [--per-run 250]

A shard is a tar, a parquet and a stats file as img2dataset writes them, with one broken sample. The model is
the small built-in one, on the CPU. The exit code is 1 if a partition was not materialized or twice, if a run
or the backfill failed, if rows are neither embedded nor failed, or if `boring-assets verify` finds an error.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
from dagster import DagsterRunStatus

from benchmarks.table import machine, print_table
from boring_assets.datasets import ASSET_KEY
from boring_assets.sample_data import write_sample_data
from tests import waiting
from tests.e2e import processes
from tests.e2e.processes import Home, Webserver
from tests.e2e.test_backfill import LAUNCH, backfill

_OVER = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Done:
    """The result of a backfill.

    Attributes:
        runs: Number of runs.
        seconds: From its launch to its end.
        busy: Sum of the seconds of all runs.
        events: Rows that it added to the event log.
        event_bytes: Growth of the event log's files.
        embedded: Rows with an embedding.
        failed: Rows without one.
        problems: What is wrong; empty if nothing is.
    """

    runs: int
    seconds: float
    busy: float
    events: int
    event_bytes: int
    embedded: int
    failed: int
    problems: list[str]


def make_shards(home: Home, shards: int, images: int) -> list[str]:
    """Writes the input and registers it; the last sample of each shard is broken."""
    paths = write_sample_data(home.input, shards, images, "webdataset", image_size=64, broken=1)
    home.register()
    return [path.stem for path in paths]


def run_backfill(home: Home, server: Webserver, keys: list[str], per_run: int) -> Done:
    """Launches a backfill of some partitions, waits until a daemon has finished it, and checks the result."""
    before = (_events(home), _log_bytes(home))
    params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}]}
    launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    start = time.monotonic()
    with home.daemon(partitions_per_run=str(per_run)):
        processes.wait_for(
            lambda: backfill(server, launched["backfillId"])["status"] in _OVER,
            "the backfill is over",
            every=2,
        )
    seconds = time.monotonic() - start
    ended = backfill(server, launched["backfillId"])
    records = home.instance.get_run_records()
    problems = [] if ended["status"] == "COMPLETED_SUCCESS" else [f"the backfill ended as {ended}"]
    problems += [
        f"run {record.dagster_run.run_id} ended as {record.dagster_run.status.value}"
        for record in records
        if record.dagster_run.status is not DagsterRunStatus.SUCCESS
    ]
    embedded, failed, wrong = _count(home, keys)
    return Done(
        runs=len(records),
        seconds=seconds,
        busy=sum((record.end_time or 0) - (record.start_time or 0) for record in records),
        events=_events(home) - before[0],
        event_bytes=_log_bytes(home) - before[1],
        embedded=embedded,
        failed=failed,
        problems=[*problems, *wrong, *_check_record(home, server, keys), *_verify(home)],
    )


def _count(home: Home, keys: list[str]) -> tuple[int, int, list[str]]:
    """Counts rows embedded and failed; lists the shards whose rows are not all accounted for."""
    embedded, failed, wrong = 0, 0, []
    if sorted(home.committed()) != sorted(keys):
        wrong.append(f"{len(home.committed())} embeddings files are there, for {len(keys)} shards")
    for key, path in home.committed().items():
        rows = pq.read_metadata(home.input / f"{key}.parquet").num_rows
        good = pq.read_metadata(path).num_rows
        bad = pq.read_table(home.output / "image_failures" / f"{key}.parquet")
        if good + bad.num_rows != rows or len(set(bad["row"].to_pylist())) != bad.num_rows:
            wrong.append(f"{key} has {rows} rows: {good} embedded and {bad.num_rows} failed")
        embedded, failed = embedded + good, failed + bad.num_rows
    return embedded, failed, wrong


def _check_record(home: Home, server: Webserver, keys: list[str]) -> list[str]:
    """Checks that Dagster has one materialization of each partition, and shows it."""
    reported = sum((home.materialized(run) for run in home.runs()), start=Counter())
    wrong = [f"{key} was materialized {reported[key]} times" for key in keys if reported[key] != 1]
    if (shown := server.partitions()) != {"materialized": sorted(keys)}:
        counts = {name: len(partitions) for name, partitions in shown.items()}
        wrong.append(f"the asset's page shows {counts}, for {len(keys)} partitions")
    return wrong


def _verify(home: Home) -> list[str]:
    done = home.run("boring-assets", "verify", str(home.output))
    return [] if done.returncode == 0 else [f"boring-assets verify: {done.stdout}{done.stderr}"]


def _events(home: Home) -> int:
    return home.instance.event_log_storage.get_maximum_record_id() or 0


def _log_bytes(home: Home) -> int:
    """Size of all SQLite files of the home, write-ahead logs among them."""
    return sum(path.stat().st_size for path in (home.root / "dagster").rglob("*.db*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--images", type=int, default=5, help="samples in a shard; one of them is broken")
    parser.add_argument("--per-run", type=int, default=250, help="maximum number of partitions in a run")
    args = parser.parse_args()
    waiting.HANG_SECONDS = 300 + args.shards
    with tempfile.TemporaryDirectory() as root:
        home = Home.make(Path(root))
        keys = make_shards(home, args.shards, args.images)
        with home.webserver(partitions_per_run=str(args.per_run)) as server:
            done = run_backfill(home, server, keys, args.per_run)
        records = sorted(home.instance.get_run_records(), key=lambda record: record.start_time or 0)
        gaps = [(b.start_time or 0) - (a.end_time or 0) for a, b in pairwise(records)]
    print(f"{args.shards} shards of {args.images} samples, up to {args.per_run} in a run. {machine()}")
    print_table(
        [
            ["", "measured"],
            ["runs", f"{done.runs}"],
            ["from launch to COMPLETED_SUCCESS", f"{done.seconds:.0f} s"],
            ["of this in runs", f"{done.busy:.0f} s"],
            ["between runs, mean", f"{sum(gaps) / len(gaps) if gaps else 0:.1f} s"],
            ["a shard", f"{1000 * done.busy / args.shards:.0f} ms"],
            ["events a shard", f"{done.events / args.shards:.1f}"],
            ["event log a shard", f"{done.event_bytes / args.shards / 1024:.1f} KiB"],
            ["rows embedded", f"{done.embedded:,}"],
            ["rows failed", f"{done.failed:,}"],
        ]
    )
    for problem in done.problems[:50]:
        print(f"WRONG: {problem}")
    sys.exit(1 if done.problems else 0)


if __name__ == "__main__":
    main()
