"""Dagster's storage as dagster.yaml configures it."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]
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
