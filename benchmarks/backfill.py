"""Measures how long a backfill takes through Dagster's daemon.

    python -m benchmarks.backfill [--shards 50] [--images 2000] [--rounds 2] [SIDE ...]

SIDE is `contiguous` (one range of partitions) or `scattered` (every second shard, so one run for each). To
leave sections of the project's dagster.yaml out, add their names: `scattered-run_launcher-run_coordinator`.
The sides run in turns, each in a new DAGSTER_HOME, with the small built-in model on the CPU. The time is from
the creation of the first run to the end of the last run.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import dagster as dg
import yaml

from benchmarks.table import machine, print_table
from boring_assets.datasets import ASSET_KEY
from boring_assets.sample_data import write_sample_data
from tests import waiting
from tests.e2e import processes
from tests.e2e.test_backfill import LAUNCH


def write_input(folder: Path, shards: int, images: int) -> list[str]:
    """Writes shards with the same 256 px images, and returns their keys."""
    new = folder / "first"
    write_sample_data(new, 1, images, "webdataset")
    for number in range(shards):
        for path in new.iterdir():
            shutil.copyfile(path, folder / path.name.replace("00000", f"{number:05d}", 1))
    shutil.rmtree(new)
    return [f"{number:05d}" for number in range(shards)]


def measure(source: Path, keys: list[str], without: list[str], runs: int) -> float:
    """Returns the seconds that a backfill of some partitions takes; `runs` is how many runs it has."""
    with tempfile.TemporaryDirectory() as root:
        home = processes.Home.make(Path(root))
        config = home.root / "dagster" / "dagster.yaml"
        sections = yaml.safe_load(config.read_text())
        if unknown := set(without) - sections.keys():
            raise SystemExit(
                f"dagster.yaml has no section {', '.join(unknown)}; it has {', '.join(sections)}."
            )
        config.write_text(
            yaml.safe_dump({name: value for name, value in sections.items() if name not in without})
        )
        home = processes.Home(home.root)  # opens the storage that is configured now
        home.input.rmdir()
        home.input.symlink_to(source)
        home.register()
        with home.webserver() as server:
            params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}]}
            launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
            assert launched["__typename"] == "LaunchBackfillSuccess", launched
            with home.daemon():
                home.wait_for_runs(runs)
        records = home.instance.get_run_records()
        assert {record.dagster_run.status for record in records} == {dg.DagsterRunStatus.SUCCESS}
        assert len(home.committed()) == len(keys)
        ended = max(record.end_time or 0 for record in records)
        return ended - min(record.create_timestamp.timestamp() for record in records)


def main() -> None:
    """Runs the sides in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("sides", nargs="*", default=["contiguous", "scattered"])
    args = parser.parse_args()
    waiting.HANG_SECONDS = 900 + 60 * args.shards
    seconds: dict[str, list[float]] = {side: [] for side in args.sides}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source = Path(folder)
        gaps = any(side.startswith("scattered") for side in args.sides)
        keys = write_input(source, args.shards * (2 if gaps else 1), args.images)
        for number in range(args.rounds):
            for side, times in seconds.items():
                order, *without = side.split("-")
                scattered = order == "scattered"
                chosen = keys[::2] if scattered else keys[: args.shards]
                runs = args.shards if scattered else -(-args.shards // 1000)
                times.append(measure(source, chosen, without, runs))
                print(f"round {number + 1}, {side}: {times[-1]:.1f} s", flush=True)
    first = statistics.median(seconds[args.sides[0]])
    print(f"{args.shards} shards of {args.images} images. {machine()}")
    rows = [["side", "seconds", f"times {args.sides[0]}"]]
    for side, times in seconds.items():
        rows.append([side, f"{statistics.median(times):.1f}", f"{statistics.median(times) / first:.2f}"])
    print_table(rows)


if __name__ == "__main__":
    main()
