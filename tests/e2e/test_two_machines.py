"""Two machines that share one PostgreSQL embed one dataset, without Ray or Kubernetes.

A Dagster home stands for a machine. Both run the same command; there is no daemon.
"""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from boring_assets.instance.homes import HOME_TAG, home_name
from tests.e2e.processes import free_port
from tests.e2e.test_postgres import database, embed, machine, stop_between_events
from tests.waiting import HANG_SECONDS, wait_for

__all__ = ["database"]
SHARDS = 60


@pytest.mark.slow
def test_two_machines_share_one_dataset(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BORING_PARTITIONS_PER_RUN", "20")
    here = machine(tmp_path / "a")
    there = machine(tmp_path / "b", here)
    keys = here.add_shards(SHARDS, images=4)
    with embed(here) as one:
        wait_for(lambda: here.committed(), "a shard is committed", every=0.02)
        stop_between_events(here, one)
        begun = len(here.committed())
        with embed(there) as two:
            wait_for(lambda: len(here.committed()) > begun, "the other machine commits too", every=0.02)
            stop_between_events(there, two)
            # It comes to the shards that the other one has begun, and then to the end.
            os.killpg(one.pid, signal.SIGCONT)
            outputs = [one.communicate(timeout=HANG_SECONDS)[0]]
            # It comes to what was done meanwhile.
            os.killpg(two.pid, signal.SIGCONT)
            outputs += [two.communicate(timeout=HANG_SECONDS)[0]]
    assert (one.returncode, two.returncode) == (0, 0), outputs
    here.check_committed(keys, images=4)
    assert {run.status for run in here.runs()} == {DagsterRunStatus.SUCCESS}
    computed: Counter[str] = Counter()
    homes: set[str] = set()
    for run in here.runs():
        for event in here.events(run):
            if not event.metadata.get("adopted"):
                computed[str(event.partition)] += 1
                homes.add(run.tags[HOME_TAG])
    assert computed == dict.fromkeys(keys, 1)
    assert homes == {home_name(here.instance), home_name(there.instance)}


@pytest.mark.slow
def test_runs_go_to_the_machine_of_their_code_location(
    database: str,
    tmp_path: Path,
) -> None:
    here = machine(tmp_path / "a")
    there = machine(tmp_path / "b", here)
    keys = here.add_shards(4, images=4)
    host, port = "127.0.0.2", str(free_port())  # unlike `localhost`, no name of this machine to the launcher
    workspace = tmp_path / "workspace.yaml"
    server = {"host": host, "port": int(port), "location_name": "boring_assets"}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
    command = ("code-server", "start", "-h", host, "-p", port, "-m", "boring_assets.definitions")
    # The daemon's machine has neither input nor output in its settings.
    nothing = {"input_dir": "", "output_dir": ""}
    with (
        there.start("dagster", *command),
        here.webserver(str(workspace), **nothing) as webserver,
        here.daemon(str(workspace), **nothing),
    ):
        webserver.turn_on("new_shards")
        wait_for(
            lambda: webserver.partitions() == {"materialized": keys},
            "the other machine embeds what the sensor finds",
            webserver.partitions,
        )
        (run,) = here.wait_for_runs(1)
    assert json.loads(run.tags[".dagster/grpc_info"])["host"] == host
    here.check_committed(keys, images=4)
