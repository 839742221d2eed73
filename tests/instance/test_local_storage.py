"""Dagster's storage as dagster.yaml configures it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import yaml

PROJECT = Path(__file__).parents[2]
# It writes events, and waits to be killed.
WRITER = """
import dagster, os, sys
instance = dagster.DagsterInstance.from_config(sys.argv[1])
for number in range(int(sys.argv[2])):
    event = dagster.AssetMaterialization("a", partition=f"{sys.argv[3]}-{number}")
    instance.report_runless_asset_event(event)
    print(number, flush=True)
input()
"""
# A process that is given no home, and one that it starts with its instance, as `dagster dev` does.
PARENT = """
import subprocess, sys
import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import serialize_value
ref = InstanceRef.from_dir(sys.argv[1], config_dir=sys.argv[2])
with dg.DagsterInstance.from_ref(ref) as instance:
    instance.add_dynamic_partitions("shards", ["a", "b"])
    print(instance.event_log_storage._conn_string.removeprefix("sqlite:///"))
    subprocess.run([sys.executable, "-c", sys.argv[3], serialize_value(ref)], check=True)
"""
CHILD = """
import sys
import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import deserialize_value
with dg.DagsterInstance.from_ref(deserialize_value(sys.argv[1], InstanceRef)) as instance:
    print(*instance.get_dynamic_partitions("shards"))
"""


def test_without_a_home_the_processes_of_one_start_share_a_folder_that_goes_with_them(tmp_path: Path) -> None:
    storage = {"storage": yaml.safe_load((PROJECT / "dagster.yaml").read_text())["storage"]}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(storage))
    env = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", PARENT, tmp_path / "home", tmp_path, CHILD],
        env=env | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    database, keys = done.stdout.splitlines()
    assert keys == "a b"
    assert database.startswith(f"{tmp_path}/dagster_home_")
    assert not Path(database).exists()


def test_processes_that_share_a_home_lose_nothing(tmp_path: Path) -> None:
    config = {"module": "boring_assets.instance.local_storage", "class": "LocalStorage"}
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
