"""A run killed half-way: what it committed stays, and Dagster's retry does the rest."""

import os
import re
import signal

import pytest
from dagster import DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.tags import range_tags
from tests.e2e.processes import Home
from tests.e2e.webserver import LOCATION, Webserver
from tests.waiting import wait_for

SHARDS = 60
MAX_UNREPORTED = 6
"""Most shards that are written before their events are stored: see `engine.pipeline`."""
LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


def launch(server: Webserver, first: str, last: str) -> str:
    params = {
        "selector": {
            **LOCATION,
            "jobName": "embed_shards",
            "assetSelection": [{"path": ASSET_KEY.path}],
        },
        "mode": "default",
        "executionMetadata": {
            "tags": [{"key": key, "value": value} for key, value in range_tags(first, last).items()]
        },
    }
    answer = server.ask(LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return answer["run"]["runId"]


@pytest.mark.slow
def test_a_killed_run_is_retried_and_loses_nothing(home: Home) -> None:
    keys = home.add_shards(SHARDS)
    home.register()
    with home.webserver() as server, home.daemon():
        run_id = launch(server, keys[0], keys[-1])
        wait_for(lambda: len(home.committed()) >= 5, "some shards are committed", every=0.02)
        kill(home, run_id)
        killed, retry = home.wait_for_runs(2)
        before = home.stamps()
        assert killed.status is DagsterRunStatus.FAILURE
        assert retry.status is DagsterRunStatus.SUCCESS, home.messages(retry)
        assert server.partitions() == {"materialized": keys}

    done = home.materialized(killed)
    adopted = {str(event.partition) for event in home.events(retry) if event.metadata.get("adopted")}
    assert 0 < len(adopted) < SHARDS
    assert set(done.values()) == {1}
    # Writing is but a few shards ahead of the events, so the kill cost no more than those events.
    assert set(done) <= adopted
    assert len(adopted) <= len(done) + MAX_UNREPORTED
    assert home.materialized(retry) == dict.fromkeys(keys, 1)
    assert home.messages(retry).count(f"{SHARDS - len(adopted)} shards on cpu") == 1
    home.check_committed(keys)
    home.check_one_at_a_time()
    assert max(before[key] for key in adopted) < min(before[key] for key in set(keys) - adopted)


def kill(home: Home, run_id: str) -> None:
    """Ends the run's process as the kernel does when memory is out."""
    started = [
        log for log in home.instance.all_logs(run_id) if "Started process for run" in str(log.dagster_event)
    ]
    pid = re.search(r"pid: (\d+)", str(started[0].dagster_event))
    assert pid
    os.kill(int(pid[1]), signal.SIGKILL)
