"""Dagster's record in SQLite with open connections: several processes at once, one of them killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import yaml

WRITER = """
import dagster, os, sys
instance = dagster.DagsterInstance.from_config(sys.argv[1])
for number in range(int(sys.argv[2])):
    event = dagster.AssetMaterialization("a", partition=f"{sys.argv[3]}-{number}")
    instance.report_runless_asset_event(event)
    print(number, flush=True)
input()
"""


def test_processes_that_share_a_home_lose_nothing(tmp_path: Path) -> None:
    config = {"module": "boring_assets.local_storage", "class": "LocalStorage"}
    storage = {"custom": {**config, "config": {"base_dir": str(tmp_path)}}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
    count, names = 20, ("one", "two")
    # They set the new home up at the same time.
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(count), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for writer in writers:
        assert writer.stdout
        assert [int(writer.stdout.readline()) for _ in range(count)] == list(range(count))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        partitions = instance.get_materialized_partitions(dg.AssetKey("a"))
        assert partitions == {f"{name}-{number}" for name in names for number in range(count)}
    assert sorted(path.name for path in (tmp_path / "history").glob("*.db")) == ["event_log.db", "runs.db"]
