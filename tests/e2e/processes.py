"""A Dagster home for a test, and Dagster's real processes on it: webserver, daemon, command line."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pyarrow.parquet as pq

from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from resources.source import ShardSource
from tests import waiting
from tests.e2e.webserver import LOCATION, Webserver
from tests.waiting import wait_for

__all__ = ["LOCATION", "PROJECT", "SCRIPTS", "Home", "Webserver", "running", "wait_for"]

PROJECT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
IMAGES = 20


@dataclass(frozen=True)
class Home:
    """A fresh `DAGSTER_HOME` with the project's dagster.yaml or another; an input, an output beside it."""

    root: Path

    @classmethod
    def make(cls, root: Path, config: Path = PROJECT / "dagster.yaml") -> "Home":
        for name in ("dagster", "input", "logs"):
            (root / name).mkdir(parents=True)
        shutil.copyfile(config, root / "dagster" / "dagster.yaml")
        home = cls(root)
        home.instance.get_dynamic_partitions("")  # two processes that create its database at once can collide
        return home

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.root / "dagster"))

    def env(self, **settings: str) -> dict[str, str]:
        """Returns the environment of this project's processes; settings are named without `BORING_`."""
        values = {
            "input_dir": str(self.input),
            "output_dir": str(self.output),
            "model": "boring-tiny",
            "device": "cpu",
            "quiet_seconds": "3600",
            "sensor_seconds": "1",
            **settings,
        }
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.root / "dagster"),
            "DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": "1",
            # Dagster's limit of a minute for an answer of the code location judges how busy the machine is.
            "DAGSTER_GRPC_TIMEOUT_SECONDS": str(waiting.HANG_SECONDS),
            **{f"BORING_{name.upper()}": value for name, value in values.items()},
        }

    def stamps(self) -> dict[str, int]:
        """Returns when each embeddings file was written, in ns."""
        return {key: path.stat().st_mtime_ns for key, path in self.committed().items()}

    def add_shards(self, count: int, first: int = 0, images: int = IMAGES, seed: int = 0) -> list[str]:
        """Writes complete shards to the input, and returns their keys."""
        new = self.root / "new"
        paths = write_sample_data(
            new, count, images, "webdataset", image_size=64, seed=seed, first_shard=first
        )
        self.publish(new)
        return [path.stem for path in paths]

    def publish(self, folder: Path) -> None:
        """Moves shards into the input, times kept; none is complete before all of them are there."""
        marks = sorted(folder.glob("*_stats.json"))
        for mark in marks:
            (self.input / mark.name).unlink(missing_ok=True)
        for path in sorted(set(folder.iterdir()) - set(marks)):
            path.replace(self.input / path.name)
        for mark in marks:
            mark.replace(self.input / mark.name)

    def register(self) -> None:
        """Registers the shards of the input, as `boring-assets register` does, in this process."""
        settings = Settings(input_dir=str(self.input), quiet_seconds=3600)
        register_shards(self.instance, ShardSource.from_settings(settings).discover(), settings)

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs one of the environment's programs to its end."""
        return subprocess.run(
            [str(SCRIPTS / command[0]), *command[1:]],
            cwd=PROJECT,
            env=self.env(**settings),
            capture_output=True,
            text=True,
            timeout=waiting.HANG_SECONDS,
            check=False,
        )

    def start(self, *command: str, **settings: str) -> AbstractContextManager[None]:
        """Keeps a command running."""
        log = self.root / "logs" / f"{command[0]}.txt"
        return running([str(SCRIPTS / command[0]), *command[1:]], log, self.env(**settings))

    @contextmanager
    def webserver(self, workspace: str = "workspace.yaml", **settings: str) -> Iterator[Webserver]:
        """Runs the webserver, and waits until it has loaded the project."""
        port = free_port()
        with self.start("dagster-webserver", "-w", workspace, "-h", "127.0.0.1", "-p", str(port), **settings):
            server = Webserver(f"http://127.0.0.1:{port}/graphql")
            wait_for(server.is_up, "the webserver answers")
            yield server

    def daemon(self, workspace: str = "workspace.yaml", **settings: str) -> Any:
        """Runs the daemon."""
        return self.start("dagster-daemon", "run", "-w", workspace, **settings)

    def runs(self) -> list[dg.DagsterRun]:
        """All runs, the oldest first."""
        return list(self.instance.get_runs(ascending=True))

    def wait_for_runs(self, count: int) -> list[dg.DagsterRun]:
        """Waits until there are so many runs and all of them are finished."""
        wait_for(
            lambda: len(runs := self.runs()) >= count and all(run.is_finished for run in runs),
            f"{count} runs are finished",
            lambda: [(run.run_id, run.status.value, run.tags) for run in self.runs()],
        )
        runs = self.runs()
        assert len(runs) == count, [(run.run_id, run.status.value, run.tags) for run in runs]
        return runs

    def check_one_at_a_time(self) -> None:
        """No run began before the one before it had ended: two would share the device."""
        records = sorted(self.instance.get_run_records(), key=lambda record: record.start_time or 0)
        for record, following in pairwise(records):
            assert record.end_time is not None
            assert following.start_time is not None
            assert record.end_time <= following.start_time, (record.dagster_run, following.dagster_run)

    def materialized(self, run: dg.DagsterRun) -> Counter[str]:
        """How many materializations a run reported of each partition."""
        return Counter(str(event.partition) for event in self.events(run))

    def events(self, run: dg.DagsterRun) -> list[dg.AssetMaterialization]:
        """The materializations that a run reported."""
        logs = self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return [log.asset_materialization for log in logs if log.asset_materialization]

    def messages(self, run: dg.DagsterRun) -> str:
        """Every line of a run's log."""
        return "\n".join(log.user_message or "" for log in self.instance.all_logs(run.run_id))

    def failure(self, run: dg.DagsterRun) -> str:
        """Returns the error of a failed run."""
        logs = self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        return "\n".join(
            data.user_failure_data.description or ""
            for log in logs
            if log.dagster_event and (data := log.dagster_event.step_failure_data).user_failure_data
        )

    def committed(self) -> dict[str, Path]:
        """The embeddings files by partition."""
        folder = self.output / "image_embeddings"
        return {path.stem: path for path in sorted(folder.glob("*.parquet"))}

    def check_committed(self, keys: list[str], images: int = IMAGES) -> None:
        """Just these partitions have an embeddings file with a vector for each image of the input."""
        assert list(self.committed()) == sorted(keys)
        for key, path in self.committed().items():
            rows, source = pq.read_table(path), pq.read_table(self.input / f"{key}.parquet")
            assert rows.num_rows == images
            assert rows["key"].to_pylist() == source["key"].to_pylist()
            assert (self.output / "image_failures" / f"{key}.parquet").exists()


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str], cwd: Path = PROJECT) -> Iterator[None]:
    """Keeps a command running; ends it with all its children, and shows its log if the block failed."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
        assert process.poll() is None, f"{command[0]} ended by itself with {process.returncode}"
    except BaseException:
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-20_000:]}")
        raise
    finally:
        _end(process)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started; whatever is left after a moment is killed."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=10)
