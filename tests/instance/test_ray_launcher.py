"""What a run requests from Ray, and when its job counts as failed; an HTTP server stands for Ray's head.

tests/e2e/test_ray.py has the real one.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import RunOpConcurrency

from boring_assets.errors import SettingsError
from boring_assets.instance.homes import HOME_TAG
from boring_assets.instance.ray_launcher import concurrent_runs
from boring_assets.tags import POOL, range_tags
from tests.instance.test_launcher import HOLD, _empty_job
from tests.waiting import HANG_SECONDS

SECRET = "the-secret-of-the-test"
_NODE = {
    "node_id": "x",
    "node_ip": "10.0.0.1",
    "is_head_node": False,
    "state": "ALIVE",
    "state_message": None,
    "node_name": "x",
    "labels": {},
}
NODES: list[dict[str, Any]] = [
    {**_NODE, "resources_total": total}
    for total in ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 1.0}, {"CPU": 64.0})
]


class Head:
    """A server that answers as Ray's head does, and keeps the jobs that it is sent."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.job_status: tuple[int, Any] = (404, "no such job")
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/api/version":
                    self.answer(200, {"version": "4", "ray_version": "2.60.0"})
                elif self.path.startswith("/api/v0/nodes"):
                    result = {"result": NODES, "total": 3, "num_after_truncation": 3, "num_filtered": 3}
                    self.answer(200, {"result": True, "msg": "", "data": {"result": result}})
                else:
                    self.answer(*head.job_status)

            def do_POST(self) -> None:
                head.jobs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer(200, {"job_id": "x", "submission_id": head.jobs[-1]["submission_id"]})

            def answer(self, code: int, body: Any) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    with head.server as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield head
        server.shutdown()


@pytest.fixture
def instance(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    monkeypatch.setenv("BORING_INPUT_DIR", "s3://bucket/in")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("BORING_METRICS_PUSHGATEWAY", f"http://user:{SECRET}@gateway:9091")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    config = {"address": head.url, "num_gpus": 1, "num_cpus": 4, "env_vars": ["MORE=1", "OTHER=2"]}
    launcher = {
        "module": "boring_assets.instance.ray_launcher",
        "class": "ClusterRunLauncher",
        "config": {"ray": config},
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": launcher}))
    return dg.DagsterInstance.from_config(str(tmp_path))


def new_run(instance: dg.DagsterInstance, pool: str | None = POOL, **tags: str) -> dg.DagsterRun:
    """A run of a job whose steps are in a pool."""
    pointer = ModuleCodePointer("boring_assets.definitions", "defs")
    repository = RepositoryPythonOrigin("/opt/venv/bin/python", pointer, None, None, None)
    run = instance.create_run_for_job(
        _empty_job(),
        status=dg.DagsterRunStatus.STARTED,
        tags=tags,
        job_code_origin=JobPythonOrigin("embed_shards", repository),
    )
    pools = RunOpConcurrency(
        root_key_counts={}, has_unconstrained_root_nodes=True, all_pools={pool} if pool else None
    )
    return run._replace(run_op_concurrency=pools)


def launched(instance: dg.DagsterInstance, head: Head, run: dg.DagsterRun) -> dict[str, Any]:
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    return head.jobs[-1]


def test_a_run_of_the_pool_asks_for_a_gpu_and_gets_the_settings(
    instance: dg.DagsterInstance, head: Head
) -> None:
    job = launched(instance, head, new_run(instance))
    assert (job["entrypoint_num_gpus"], job["entrypoint_num_cpus"]) == (1, 4)
    assert job["runtime_env"]["env_vars"] == {
        "BORING_INPUT_DIR": "s3://bucket/in",
        "BORING_DECODE_WORKERS": "4",
        "MORE": "1",
        "OTHER": "2",
        "DAGSTER_RUN_JOB_NAME": "embed_shards",
    }
    assert SECRET not in json.dumps(job)
    assert {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()} == {POOL: 3}


def test_other_runs_never_wait_for_a_gpu(instance: dg.DagsterInstance, head: Head) -> None:
    for pool in (None, "embedding_index"):
        job = launched(instance, head, new_run(instance, pool))
        assert not {"entrypoint_num_gpus", "entrypoint_num_cpus"} & job.keys()
        assert "BORING_DECODE_WORKERS" not in job["runtime_env"]["env_vars"]


def test_the_ray_tag_of_a_run_overrides_the_request(
    instance: dg.DagsterInstance, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"num_gpus": 0, "memory": 1000, "env_vars": ["OTHER=3", "BORING_BATCH_SIZE=8"]}
    job = launched(instance, head, new_run(instance, **{"dagster-ray/config": json.dumps(tag)}))
    assert not job.get("entrypoint_num_gpus")
    assert (job["entrypoint_num_cpus"], job["entrypoint_memory"]) == (4, 1000)
    env = job["runtime_env"]["env_vars"]
    assert (env["MORE"], env["OTHER"], env["BORING_BATCH_SIZE"]) == ("1", "3", "8")
    assert env["BORING_INPUT_DIR"] == "s3://bucket/in"
    monkeypatch.setenv("BORING_DECODE_WORKERS", "2")
    job = launched(instance, head, new_run(instance, None, **{"dagster-ray/config": '{"num_cpus": 0.5}'}))
    assert job["entrypoint_num_cpus"] == 0.5
    assert job["runtime_env"]["env_vars"]["BORING_DECODE_WORKERS"] == "2"
    with pytest.raises(SettingsError, match=r"dagster-ray/config names num_gpu; expected: .*num_gpus"):
        launched(instance, head, new_run(instance, **{"dagster-ray/config": '{"num_gpu": 1}'}))


def test_the_health_of_a_run_is_the_status_of_its_ray_job(instance: dg.DagsterInstance, head: Head) -> None:
    run, launcher = new_run(instance), instance.run_launcher
    job = {"type": "SUBMISSION", "entrypoint": "x"}
    for status, expected in (
        ((200, job | {"status": "RUNNING"}), WorkerStatus.RUNNING),
        ((200, job | {"status": "FAILED"}), WorkerStatus.FAILED),
        ((500, "the head is still starting"), WorkerStatus.RUNNING),  # its job may well be alive
        ((404, "no such job"), WorkerStatus.UNKNOWN),
    ):
        head.job_status = status
        assert launcher.check_run_worker_health(run).status is expected, status


def test_while_ray_does_not_answer_runs_stay_queued_and_none_fails(
    instance: dg.DagsterInstance, head: Head
) -> None:
    run = new_run(instance)
    head.server.shutdown()
    head.server.server_close()
    with pytest.raises(DagsterUserCodeUnreachableError, match=f"{head.url} does not answer"):
        instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    with pytest.raises(ConnectionError, match="does not answer"):
        instance.run_launcher.check_run_worker_health(run)


def test_a_run_of_a_command_line_is_judged_by_its_lock(instance: dg.DagsterInstance) -> None:
    """Ray knows no job of it, and would have it failed while it goes on."""
    run, health = new_run(instance, **range_tags("a", "b")), instance.run_launcher.check_run_worker_health
    command = [sys.executable, "-c", HOLD, str(instance.root_directory), run.run_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as command_line:
        assert command_line.stdout is not None
        command_line.stdout.readline()
        assert health(run).status is WorkerStatus.RUNNING
        command_line.kill()
    assert health(run).status is WorkerStatus.FAILED
    assert health(run.with_tags({**run.tags, HOME_TAG: "0123456789ab"})).status is WorkerStatus.RUNNING


@pytest.mark.parametrize(
    ("request_", "runs"),
    [
        ({"num_gpus": 1}, 5),
        ({"num_gpus": 1, "num_cpus": 4}, 3),
        ({"num_gpus": 0.5}, 10),
        ({"num_cpus": 16, "num_gpus": None}, 8),
        ({"resources": {"GPU": 2}}, 2),
        ({"num_gpus": 1, "memory": 1}, 0),
        ({"num_gpus": None, "num_cpus": 0}, 1),
    ],
)
def test_how_many_runs_there_is_room_for(request_: dict[str, Any], runs: int) -> None:
    assert concurrent_runs([node["resources_total"] for node in NODES], request_) == runs


def test_definitions_load_without_ray() -> None:
    code = (
        "import sys\nsys.modules['ray'] = sys.modules['dagster_ray'] = None\n"
        "import boring_assets.cli, boring_assets.instance.launcher, boring_assets.definitions\n"
        "boring_assets.definitions.defs.get_repository_def().load_all_definitions()\n"
        "try:\n    import boring_assets.instance.ray_launcher\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "boring_assets[ray]" in done.stdout
