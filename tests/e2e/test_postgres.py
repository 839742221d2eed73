"""One PostgreSQL and one bucket of logs, shared by a webserver, a daemon and other machines' command lines.

Each Dagster home stands for a machine: only the database and the bucket are shared.
"""

import os
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.tags import DATA_VERSION_TAG
from tests.e2e.processes import PROJECT, SCRIPTS, Home
from tests.postgres import Postgres
from tests.seaweed import BUCKET, Seaweed
from tests.waiting import HANG_SECONDS, wait_for

CONFIG = PROJECT / "deploy" / "postgres" / "dagster.yaml"
LOGS = """query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"""


@pytest.fixture
def database(postgres: Postgres, s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new database; this process's environment has what deploy/postgres/dagster.yaml asks for."""
    name = postgres.new_database()
    for variable, value in postgres.env(name).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", BUCKET)
    return name


def machine(root: Path, shared: Home | None = None) -> Home:
    """A home on the shared database, and where it is not the first one, with the first one's data."""
    home = Home.make(root, CONFIG)
    if shared:
        home.input.rmdir()
        home.input.symlink_to(shared.input)
        shared.output.mkdir(exist_ok=True)
        home.output.symlink_to(shared.output)
    return home


@contextmanager
def embed(home: Home) -> Iterator[subprocess.Popen[str]]:
    """Runs `boring-assets embed` over the shared data."""
    process = subprocess.Popen(
        [str(SCRIPTS / "boring-assets"), "embed", str(home.input), str(home.output)],
        cwd=PROJECT,
        env=home.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stop_between_events(home: Home, process: subprocess.Popen[str]) -> None:
    """Stops a process where each of its events is stored whole.

    Dagster stores an event and its tags in two transactions. A process that is stopped between them may hold
    a lock that the others wait for, and its shard has no version, so they would report it again.
    """

    def stopped() -> bool:
        os.killpg(process.pid, signal.SIGSTOP)
        assert process.poll() is None
        time.sleep(0.2)  # what the server was executing ends
        tags = home.instance.event_log_storage.get_latest_tags_by_partition(
            ASSET_KEY, DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
        )
        if home.instance.get_materialized_partitions(ASSET_KEY) == tags.keys():
            return True
        os.killpg(process.pid, signal.SIGCONT)
        return False

    wait_for(stopped, "the process is stopped between two events", every=0.02)


def stored(postgres: Postgres, s3: Seaweed, database: str) -> Iterator[bytes]:
    """Everything that is stored: the values of the database, snapshots unpacked, and the logs."""
    for cell in postgres.cells(database):
        raw = bytes(cell) if isinstance(cell, memoryview) else str(cell).encode()
        yield zlib.decompress(raw) if raw[:1] == b"\x78" and isinstance(cell, memoryview) else raw
    fs = s3.filesystem()
    for path in fs.find(f"{BUCKET}/dagster"):
        yield fs.cat_file(path)


@pytest.mark.slow
def test_a_daemon_and_two_command_lines_at_once(
    postgres: Postgres, s3: Seaweed, database: str, tmp_path: Path
) -> None:
    home = machine(tmp_path / "a")
    others = [machine(tmp_path / name, home) for name in ("b", "c")]
    keys = home.add_shards(12, images=4)
    with home.webserver() as server, home.daemon():
        server.turn_on("new_shards")
        with embed(others[0]) as one, embed(others[1]) as two:
            outputs = [process.communicate(timeout=HANG_SECONDS)[0] for process in (one, two)]
        assert (one.returncode, two.returncode) == (0, 0), outputs
        late = home.add_shards(2, first=12, images=4)  # these are for the sensor alone
        wait_for(
            lambda: (
                server.partitions() == {"materialized": keys + late}
                and all(r.is_finished for r in home.runs())
            ),
            "everything is materialized",
            server.partitions,
        )
        runs = home.runs()
        assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
        home.check_committed(keys + late, images=4)
        last = next(run for run in reversed(runs) if run.remote_job_origin)
        fs = s3.filesystem()
        logs = fs.find(f"{BUCKET}/dagster/storage/{last.run_id}/compute_logs")
        (log,) = (path for path in logs if not path.endswith(".partial"))  # of a step over 30 seconds
        shown = server.ask(LOGS, key=[last.run_id, "compute_logs", Path(log).stem])["capturedLogs"]
        assert "shards on cpu" in shown["stderr"]
        assert shown["stderr"].encode() == fs.cat_file(log)
    everything = b"\n".join(stored(postgres, s3, database))
    assert b"shards on cpu" in everything
    assert postgres.password.encode() not in everything
    assert s3.secret.encode() not in everything


@pytest.mark.slow
def test_a_machine_checks_only_its_own_runs(database: str, tmp_path: Path) -> None:
    here = machine(tmp_path / "a")
    there = machine(tmp_path / "b", here)
    keys = here.add_shards(60)
    command = ["boring-assets", "embed", str(here.input), str(here.output)]
    with embed(here) as process:
        wait_for(lambda: len(here.committed()) >= 2, "shards are committed", every=0.02)
        stop_between_events(here, process)
        assert len(here.committed()) < len(keys)
        assert "in another run now" in there.run(*command).stdout
        assert [run.status for run in here.runs()] == [DagsterRunStatus.STARTED]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert here.run(*command).returncode == 0
    assert [run.status for run in here.runs()] == [DagsterRunStatus.FAILURE, DagsterRunStatus.SUCCESS]
    here.check_committed(keys)
