"""Measures what small shards cost with Dagster: the same images in one shard, and in many.

    python -m benchmarks.small_shards [--model boring-tiny] [--images 2000] [--shards 40] [--rounds 3]

Each side is one run in a new Dagster home; the sides run in turns. The time is from the loaded model to the
end of the run, without asset checks: reading, embedding, committing and reporting.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from benchmarks.pictures import write_shards
from benchmarks.table import machine, print_table


def measure(source: Path, work: Path, model: str) -> float:
    """Returns the seconds from the loaded model to the end of a run over all shards of a folder."""
    home = work / "home"
    env = {**os.environ, "DAGSTER_HOME": str(home), "BORING_DEVICE": "cpu"}
    command = [sys.executable, "-m", "boring_assets.cli", "embed", str(source), str(work / "out")]
    subprocess.run([*command, "--model", model], env=env, check=True, stdout=subprocess.DEVNULL)
    os.environ["DAGSTER_HOME"] = str(home)
    with dg.DagsterInstance.get() as instance:
        (record,) = instance.get_run_records()
        logs = instance.all_logs(record.dagster_run.run_id)
        loaded = next(log.timestamp for log in logs if " shards on " in (log.user_message or ""))
        ended = record.end_time
    assert ended
    shutil.rmtree(work)
    return ended - loaded


def main() -> None:
    """Runs both sides in turns and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="boring-tiny")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        write_shards(root / "one", 1, args.images)
        write_shards(root / "many", args.shards, args.images // args.shards)
        seconds: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(args.rounds):
            for name, times in seconds.items():
                times.append(measure(root / name, root / f"work-{time.monotonic_ns()}", args.model))
    one, many = (statistics.median(times) for times in seconds.values())
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"{args.model}, {args.images} images; load {os.getloadavg()[0]:.1f}. {machine()}")
    rows = [["shards", "seconds", "images/s", "ratio to one shard"]]
    rows.append(["1", f"{one:.1f}", f"{args.images / one:,.0f}", "1x"])
    rows.append(
        [
            str(args.shards),
            f"{many:.1f}",
            f"{args.images / many:,.0f}",
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    )
    print_table(rows)
    print(f"Each further shard takes {1000 * (many - one) / (args.shards - 1):.0f} ms.")


if __name__ == "__main__":
    main()
