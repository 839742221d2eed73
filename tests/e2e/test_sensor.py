"""The sensor under a real daemon: shards dropped into the input are embedded, once each."""

import pytest
from dagster import DagsterRunStatus

from boring_assets.attempts import DAMAGED_ATTEMPTS
from tests.e2e.processes import Home
from tests.e2e.webserver import Webserver

SENSOR = "new_shards"


def turn_on(server: Webserver) -> None:
    server.turn_on(SENSOR)


@pytest.mark.slow
def test_dropped_changed_and_corrupt_shards(home: Home) -> None:
    with home.webserver() as server, home.daemon():
        turn_on(server)
        check_what_is_dropped_or_changed_is_embedded_once(home, server)
        server.turn_off(SENSOR)
        check_a_corrupt_shard_costs_itself_alone(home, server)


def check_what_is_dropped_or_changed_is_embedded_once(home: Home, server: Webserver) -> None:
    home.add_shards(1)
    (run,) = home.wait_for_runs(1)
    assert run.status is DagsterRunStatus.SUCCESS, home.messages(run)
    assert home.materialized(run) == {"00000": 1}
    home.check_committed(["00000"])

    (home.input / "00001.parquet").write_bytes(b"PAR1: img2dataset is still at it")
    home.add_shards(2, first=2)
    *_, run = home.wait_for_runs(2)
    assert home.materialized(run) == {"00002": 1, "00003": 1}
    home.check_committed(["00000", "00002", "00003"])
    before = home.stamps()

    home.add_shards(1, seed=7)
    *_, run = home.wait_for_runs(3)
    assert home.materialized(run) == {"00000": 1}
    home.check_committed(["00000", "00002", "00003"])

    assert {key for key, stamp in home.stamps().items() if stamp != before[key]} == {"00000"}
    assert server.partitions() == {"materialized": ["00000", "00002", "00003"]}


def check_a_corrupt_shard_costs_itself_alone(home: Home, server: Webserver) -> None:
    done = sorted(home.committed())
    bad, *good = "00011", "00010", "00012"
    home.add_shards(3, first=10)
    whole = (home.input / f"{bad}.parquet").read_bytes()
    (home.input / f"{bad}.parquet").write_bytes(whole[:-100])
    turn_on(server)

    *_, first, second, third = home.wait_for_runs(3 + DAMAGED_ATTEMPTS)
    for run in (first, second, third):
        assert run.status is DagsterRunStatus.FAILURE
        assert f"{bad}.parquet" in home.failure(run)
    assert "1 of 3 shards failed" in home.failure(first)
    assert home.messages(first).count("3 shards on cpu") == 1  # one model for all
    assert home.materialized(first) == dict.fromkeys(good, 1)
    assert not home.materialized(second)
    assert not home.materialized(third)
    home.check_committed([*done, *good])
    before = home.stamps()
    assert server.partitions() == {"materialized": [*done, *good], "failed": [bad]}
    server.check_idle(SENSOR)
    assert len(home.runs()) == 3 + DAMAGED_ATTEMPTS, "neither run_retries nor the sensor tries again"

    server.turn_off(SENSOR)
    (home.input / f"{bad}.parquet").write_bytes(whole)
    again = server.ask(
        """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
            __typename ... on PythonError { message } } }""",
        params={"parentRunId": first.run_id, "strategy": "FROM_FAILURE"},
    )
    assert again["launchRunReexecution"]["__typename"] == "LaunchRunSuccess", again
    *_, repaired = home.wait_for_runs(4 + DAMAGED_ATTEMPTS)
    assert repaired.status is DagsterRunStatus.SUCCESS, home.messages(repaired)
    assert home.materialized(repaired) == dict.fromkeys([*good, bad], 1)
    home.check_committed([*done, *good, bad])
    assert {key: home.stamps()[key] for key in before} == before
    assert server.partitions() == {"materialized": sorted([*done, *good, bad])}
