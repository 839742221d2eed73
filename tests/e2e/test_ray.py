"""Runs as jobs of a real Ray cluster, through a real daemon, with the very dagster.yaml of deploy/ray.

Its GPUs are logical: Ray gives them out and sets CUDA_VISIBLE_DEVICES, and CPU devices stand for them.
"""

import re
import signal
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from dagster import DagsterRun, DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.tags import POOL, range_tags
from tests.e2e.processes import LOCATION, PROJECT, Home, Webserver
from tests.e2e.test_backfill import LAUNCH as BACKFILL
from tests.e2e.test_devices import DEVICES
from tests.e2e.test_killed_run import LAUNCH
from tests.e2e.test_postgres import database, stored
from tests.postgres import Postgres
from tests.ray_cluster import RayCluster, node_of
from tests.seaweed import Seaweed
from tests.waiting import HANG_SECONDS, wait_for

__all__ = ["database"]
CONFIG = PROJECT / "deploy" / "ray" / "dagster.yaml"
SHARDS = 20
CPUS = 4


@pytest.fixture
def ray(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A head with two GPUs; its environment has what deploy/ray/dagster.yaml asks for."""
    with RayCluster() as cluster:
        cluster.start_head(gpus=2, cpus=2 * CPUS)
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        yield cluster


@pytest.fixture
def home(ray: RayCluster, tmp_path: Path) -> Home:
    home = Home.make(tmp_path, CONFIG)
    config = home.root / "dagster" / "dagster.yaml"
    text = config.read_text()
    assert "poll_interval_seconds: 15" in text
    config.write_text(text.replace("poll_interval_seconds: 15", "poll_interval_seconds: 2"))
    return home


@pytest.mark.slow
@pytest.mark.timeout(2 * HANG_SECONDS)
def test_runs_on_a_cluster(
    ray: RayCluster, home: Home, database: str, postgres: Postgres, s3: Seaweed, tmp_path: Path
) -> None:
    keys = home.add_shards(4 * SHARDS + 1, images=4)
    gap, last = keys[SHARDS], keys[2 * SHARDS]
    home.register()
    with home.webserver() as server, home.daemon(device=DEVICES):
        two_runs_get_two_gpus_and_one_is_killed(
            ray, home, server, [key for key in keys if key <= last and key != gap]
        )
        a_node_is_lost(ray, home, server, keys[2 * SHARDS + 1 :])
    home.check_committed([key for key in keys if key != gap], images=4)
    check_secrets(ray, home, b"\n".join(stored(postgres, s3, database)), [postgres.password, s3.secret])
    check_tokens(ray)
    check_equal_to_local(home, Home.make(tmp_path / "local"))


def two_runs_get_two_gpus_and_one_is_killed(
    ray: RayCluster, home: Home, server: Webserver, keys: list[str]
) -> None:
    params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}]}
    launched = server.ask(BACKFILL, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    processes = wait_for(lambda: len(found := ray.run_processes()) == 2 and found, "two runs are executed")
    given = [process.environ() for process in processes.values()]
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for env in given) == ["0", "1"]
    assert {env["BORING_DECODE_WORKERS"] for env in given} == {str(CPUS)}
    assert limit(home) == 2

    victim = home.instance.get_run_by_id(next(iter(processes)))
    assert victim
    victim_keys = (
        keys[:SHARDS] if victim.tags["dagster/asset_partition_range_start"] == keys[0] else keys[SHARDS:]
    )
    before = stop_half_way(home, victim, processes[victim.run_id])
    processes[victim.run_id].kill()

    runs = home.wait_for_runs(3)
    assert sorted(run.status.value for run in runs) == ["FAILURE", "SUCCESS", "SUCCESS"]
    first = [run for run in runs if run.run_id in processes]
    used = [{event.metadata["device"].value for event in home.events(run)} for run in first]
    assert sorted(used, key=str) == [{"cpu:0"}, {"cpu:1"}]
    check_retry(home, victim, victim_keys, before)


def a_node_is_lost(ray: RayCluster, home: Home, server: Webserver, keys: list[str]) -> None:
    ray.start_node("other", gpus=1, cpus=CPUS)
    keys_of_both, victim_keys = keys[:SHARDS], keys[SHARDS:]
    both = launch(server, keys_of_both, '{"num_gpus": 2, "num_cpus": 3}')
    env = wait_for(lambda: ray.run_processes().get(both), "a run has both GPUs of the head").environ()
    assert (env["CUDA_VISIBLE_DEVICES"], env["BORING_DECODE_WORKERS"]) == ("0,1", "3")
    lost = launch(server, victim_keys)
    process = wait_for(lambda: ray.run_processes().get(lost), "a run is executed on the other node")
    assert node_of(process) == "other"
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == "0"
    assert limit(home) == 3
    victim = home.instance.get_run_by_id(lost)
    assert victim
    before = stop_half_way(home, victim, process)
    ray.kill_raylet("other")
    process.kill()  # what is on a machine that is lost is lost with it

    runs = home.wait_for_runs(6)
    assert sorted(run.status.value for run in runs[3:]) == ["FAILURE", "SUCCESS", "SUCCESS"]
    check_retry(home, victim, victim_keys, before)
    # Each launch counts the devices of the nodes that Ray knows to be alive.
    wait_for(lambda: len(alive_nodes(ray)) == 1, "Ray has noticed that the node is lost", lambda: ray.nodes())
    launch(server, victim_keys[:1])
    home.wait_for_runs(7)
    assert limit(home) == 2


def launch(server: Webserver, keys: list[str], config: str = "{}") -> str:
    """Launches a run over a range of partitions, with an override of what it asks Ray for."""
    tags = {**range_tags(keys[0], keys[-1]), "dagster-ray/config": config}
    params = {
        "selector": {**LOCATION, "jobName": "embed_shards", "assetSelection": [{"path": ASSET_KEY.path}]},
        "mode": "default",
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    answer = server.ask(LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


def stop_half_way(home: Home, run: DagsterRun, process: psutil.Process) -> dict[str, int]:
    """Keeps a run from going on once it has materialized shards, and gives what is committed then."""
    wait_for(lambda: len(home.materialized(run)) >= 2, "the run has materialized shards", every=0.1)
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: is_stopped(process), "all its threads are stopped", every=0.01)
    return home.stamps()


def is_stopped(process: psutil.Process) -> bool:
    """Whether all threads are stopped: a system call, e.g. a rename, ends before its thread stops."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] in "Tt" for stat in stats)


def check_retry(home: Home, victim: DagsterRun, keys: list[str], before: dict[str, int]) -> None:
    """The run failed; its retry kept what the run had committed, and did the rest."""
    assert home.instance.get_run_by_id(victim.run_id).status is DagsterRunStatus.FAILURE
    (retry,) = [run for run in home.runs() if run.parent_run_id == victim.run_id]
    assert home.materialized(retry) == dict.fromkeys(keys, 1)
    adopted = {str(event.partition) for event in home.events(retry) if event.metadata.get("adopted")}
    assert adopted == before.keys() & set(keys)
    assert len(adopted) < len(keys)
    after = home.stamps()
    assert {key: after[key] for key in before} == before


def alive_nodes(ray: RayCluster) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["state"] == "ALIVE"]


def limit(home: Home) -> int | None:
    return {pool.name: pool.limit for pool in home.instance.event_log_storage.get_pool_limits()}[POOL]


def check_secrets(ray: RayCluster, home: Home, everything: bytes, hidden: list[str]) -> None:
    """Ray shows settings with a job, and no secret; nor do Ray's files or Dagster's storage hold one."""
    shown = ray.jobs()
    assert len([job for job in shown if job["submission_id"]]) == 7
    assert {job["runtime_env"]["env_vars"]["BORING_INPUT_DIR"] for job in shown} == {str(home.input)}
    files = [path.read_bytes() for path in ray.folder.rglob("*") if path.is_file()]
    texts = b"\n".join([str(shown).encode(), everything, *files])
    assert b"DAGSTER_POSTGRES_PASSWORD" in texts
    for secret in (*hidden, ray.token):
        assert secret.encode() not in texts


def check_tokens(ray: RayCluster) -> None:
    for token, code in (("", 401), ("wrong" * 8, 403)):
        for path in ("/api/jobs/", "/api/v0/nodes"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ray.ask(path, token=token)
            assert refused.value.code == code
    alive = len(alive_nodes(ray))
    intruder = ray.join("intruder", "--num-gpus=1", token="wrong" * 8)
    assert intruder.returncode != 0
    assert re.search("(?i)authenticat|token", intruder.stdout), intruder.stdout
    assert len(alive_nodes(ray)) == alive == 1


def check_equal_to_local(home: Home, local: Home) -> None:
    """Row for row what one local process makes of the same input."""
    done = local.run("boring-assets", "embed", str(home.input), str(local.output))
    assert done.returncode == 0, done.stdout
    for key, path in home.committed().items():
        ours, theirs = (pq.read_table(one) for one in (path, local.committed()[key]))
        assert ours.drop("embedding").equals(theirs.drop("embedding")), key
        vectors = [np.stack(table["embedding"].to_numpy(zero_copy_only=False)) for table in (ours, theirs)]
        assert np.abs(vectors[0] - vectors[1]).max() < 1e-2, key
        assert ((vectors[0] * vectors[1]).sum(axis=1) > 0.999).all(), key
