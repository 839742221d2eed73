"""A machine is taken away three times: nobody has to do anything, and nothing is embedded twice."""

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from dagster import DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.instance.homes import WORKER_TAG
from tests.e2e.processes import PROJECT, SCRIPTS, Home
from tests.e2e.test_backfill import LAUNCH, backfill
from tests.waiting import wait_for

SHARDS = 200
LOSSES = 3
# More than the threads that a run decodes with, so it decodes in processes of its own.
SETTINGS = {"decode_workers": "5"}
# Fewer than the losses: it is the shards that each attempt embeds that allow the next one.
MAX_RETRIES = 2


@pytest.fixture
def home(tmp_path: Path) -> Home:
    text = (PROJECT / "dagster.yaml").read_text()
    assert "max_retries: 5" in text
    (tmp_path / "few_retries.yaml").write_text(text.replace("max_retries: 5", f"max_retries: {MAX_RETRIES}"))
    return Home.make(tmp_path, tmp_path / "few_retries.yaml")


class Daemon:
    """The daemon and all that it starts."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.start()

    def start(self) -> None:
        with (self._home.root / "logs" / "daemon.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [str(SCRIPTS / "dagster-daemon"), "run", "-w", "workspace.yaml"],
                cwd=PROJECT,
                env=self._home.env(**SETTINGS),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Ends the daemon, the code location, the worker and its decoding processes, as a power cut does."""
        process = psutil.Process(self._process.pid)
        all_of_them = [process, *process.children(recursive=True)]
        for one in all_of_them:
            one.suspend()  # none of them sees another one end
        for one in all_of_them:
            one.kill()
        self._process.wait()
        psutil.wait_procs(all_of_them)


@contextmanager
def daemon(home: Home) -> Iterator[Daemon]:
    one = Daemon(home)
    try:
        yield one
    except BaseException:
        print((home.root / "logs" / "daemon.txt").read_text(errors="replace")[-20_000:])
        raise
    finally:
        one.kill()


def lose(home: Home, take_away: Callable[[], None]) -> dict[str, int]:
    """Takes the machine away three times at random; returns when each shard was written that it then had."""
    kept: dict[str, int] = {}
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    for count in sorted(random.Random(seed).sample(range(1, SHARDS - 20), LOSSES)):
        more = max(count, len(kept) + 1)
        wait_for(lambda: len(home.committed()) >= more, f"{more} shards are committed", home.runs, 0.02)  # noqa: B023
        take_away()
        kept |= home.stamps()
        print(f"lost at {len(kept)} shards")
    return kept


def check(home: Home, keys: list[str], kept: dict[str, int]) -> None:
    """Everything is embedded; what was committed before a loss was not written again."""
    home.check_committed(keys, images=2)
    stamps = home.stamps()
    assert {key: stamps[key] for key in kept} == kept
    failure, success = DagsterRunStatus.FAILURE, DagsterRunStatus.SUCCESS
    assert [run.status for run in home.runs()] == [*[failure] * LOSSES, success]
    computed = [
        str(event.partition)
        for run in home.runs()
        for event in home.events(run)
        if not event.metadata.get("adopted")
    ]
    assert len(computed) == len(set(computed)), "no shard was reported as computed twice"


@pytest.mark.soak
@pytest.mark.slow
def test_a_machine_with_its_daemon_and_the_sensor(home: Home) -> None:
    keys = home.add_shards(SHARDS, images=2)
    with home.webserver(**SETTINGS) as server, daemon(home) as machine:
        server.turn_on("new_shards")

        def take_away() -> None:
            machine.kill()
            machine.start()

        kept = lose(home, take_away)
        wait_for(
            lambda: (
                server.partitions() == {"materialized": keys} and all(run.is_finished for run in home.runs())
            ),
            "everything is materialized",
            lambda: [(run.status, run.tags) for run in home.runs()],
        )
    check(home, keys, kept)


@pytest.mark.soak
@pytest.mark.slow
def test_the_run_of_a_backfill(home: Home) -> None:
    keys = home.add_shards(SHARDS, images=2)
    home.register()
    with home.webserver(**SETTINGS) as server, daemon(home):
        params = {"partitionNames": keys, "assetSelection": [{"path": ASSET_KEY.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]

        def take_away() -> None:
            """Kills the worker and its decoding processes, which are a process group."""
            (run,) = [run for run in home.runs() if not run.is_finished]
            os.killpg(int(run.tags[WORKER_TAG].partition("-")[0]), signal.SIGKILL)
            wait_for(
                lambda: run.run_id in {one.run_id for one in home.runs() if one.is_finished},
                "the loss is seen",
            )

        kept = lose(home, take_away)
        wait_for(
            lambda: backfill(server, launched["backfillId"])["status"] not in ("REQUESTED", "COMPLETED"),
            "the backfill is complete",
            lambda: (backfill(server, launched["backfillId"]), home.runs()),
        )
        ended = backfill(server, launched["backfillId"])
        assert ended["status"] == "COMPLETED_SUCCESS", ended
        assert server.partitions() == {"materialized": keys}
    check(home, keys, kept)
