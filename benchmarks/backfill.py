"""What gaps in a backfill's selection cost: the same shards in one range, and each in a run of its own.

    python -m benchmarks.backfill [--shards 50] [--images 40] [--cold]

Both go through Dagster's daemon, each in a fresh home, with the built-in tiny model on the CPU. The time is
from the creation of the first run to the end of the last. `--cold` takes Dagster's own launcher, queue
and storage.
"""

import argparse
import tempfile
from pathlib import Path

import yaml
from dagster import DagsterRunStatus

from boring_assets.catalogue import ASSET_KEY
from tests.e2e import processes
from tests.e2e.test_backfill import LAUNCH


def measure(shards: int, images: int, every: int, cold: bool) -> float:
    """Seconds that a backfill takes of every n-th of n times as many shards."""
    with tempfile.TemporaryDirectory() as root:
        home = processes.Home.make(Path(root))
        if cold:
            config = home.root / "dagster" / "dagster.yaml"
            left_out = ("run_launcher", "run_coordinator", "storage")
            kept = {k: v for k, v in yaml.safe_load(config.read_text()).items() if k not in left_out}
            config.write_text(yaml.safe_dump(kept))
        keys = home.add_shards(shards * every, images=images)[::every]
        home.register()
        with home.webserver() as server:
            params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}]}
            launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
            assert launched["__typename"] == "LaunchBackfillSuccess", launched
            with home.daemon():
                home.wait_for_runs(1 if every == 1 else shards)
        records = home.instance.get_run_records()
        assert {record.dagster_run.status for record in records} == {DagsterRunStatus.SUCCESS}
        home.check_committed(keys, images)
        ended = max(record.end_time or 0 for record in records)
        return ended - min(record.create_timestamp.timestamp() for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    processes.DEADLINE = 60 + 30 * args.shards
    contiguous = measure(args.shards, args.images, 1, args.cold)
    print(f"{args.shards} shards in one range: {contiguous:.1f} s", flush=True)
    scattered = measure(args.shards, args.images, 2, args.cold)
    print(f"{args.shards} shards with gaps: {scattered:.1f} s, {scattered / contiguous:.2f} times as long")


if __name__ == "__main__":
    main()
