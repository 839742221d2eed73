"""The sensor under a real daemon: shards dropped into the input are embedded, once each."""

import pytest
from dagster import DagsterRunStatus

from tests.e2e.processes import LOCATION, Home, Webserver, wait_for

TICKS = """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
    sensorState { status ticks(limit: 30) { tickId status skipReason error { message } } } } } }"""
SENSOR = {**LOCATION, "sensorName": "new_shards"}


def turn_on(server: Webserver, location: str = LOCATION["repositoryLocationName"]) -> None:
    started = server.ask(
        """mutation($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
            ... on Sensor { sensorState { status } } ... on PythonError { message } } }""",
        sensor={**SENSOR, "repositoryLocationName": location},
    )
    assert started["startSensor"]["sensorState"]["status"] == "RUNNING", started


def turn_off(server: Webserver) -> None:
    state = server.ask(
        """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
            sensorState { id } } } }""",
        sensor=SENSOR,
    )["sensorOrError"]["sensorState"]
    stopped = server.ask(
        """mutation($id: String!) { stopSensor(id: $id) { ... on StopSensorMutationResult {
            instigationState { status } } ... on PythonError { message } } }""",
        id=state["id"],
    )
    assert stopped["stopSensor"]["instigationState"]["status"] == "STOPPED", stopped


def ticks(server: Webserver) -> list[dict]:
    """The sensor's ticks, the latest first."""
    return server.ask(TICKS, sensor=SENSOR)["sensorOrError"]["sensorState"]["ticks"]


def check_idle(server: Webserver) -> None:
    """Waits until the sensor has looked twice more, and saw nothing to do."""
    seen = {tick["tickId"] for tick in ticks(server)}

    def fresh() -> list[str]:
        return [tick["status"] for tick in ticks(server) if tick["tickId"] not in seen]

    wait_for(lambda: len([status for status in fresh() if status != "STARTED"]) >= 2, "the sensor ticks")
    assert set(fresh()) <= {"SKIPPED", "STARTED"}


@pytest.mark.slow
def test_dropped_and_changed_shards_are_embedded_once(home: Home) -> None:
    with home.webserver() as server, home.daemon():
        turn_on(server)
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
        check_idle(server)
        assert len(home.runs()) == 3


@pytest.mark.slow
def test_a_corrupt_shard_costs_itself_alone(home: Home) -> None:
    home.set_max_retries(1)
    with home.webserver() as server, home.daemon():
        home.add_shards(3)
        good = (home.input / "00001.parquet").read_bytes()
        (home.input / "00001.parquet").write_bytes(good[:-100])
        turn_on(server)

        first, retry = home.wait_for_runs(2)
        for run in (first, retry):
            assert run.status is DagsterRunStatus.FAILURE
            assert home.materialized(run) == {"00000": 1, "00002": 1}
            reason = home.failure(run)
            assert "1 of 3 shards failed" in reason
            assert "00001.parquet" in reason
        assert home.messages(first).count("3 shards on cpu") == 1  # one model for all
        assert home.messages(retry).count("1 shards on cpu") == 1
        assert not any(event.metadata.get("adopted") for event in home.events(first))
        assert all(event.metadata.get("adopted") for event in home.events(retry))
        home.check_committed(["00000", "00002"])
        before = home.stamps()
        assert server.partitions() == {"materialized": ["00000", "00002"], "failed": ["00001"]}
        check_idle(server)
        assert len(home.runs()) == 2, "the sensor asked again for a version that had failed"

        turn_off(server)
        (home.input / "00001.parquet").write_bytes(good)
        again = server.ask(
            """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
                __typename ... on PythonError { message } } }""",
            params={"parentRunId": retry.run_id, "strategy": "FROM_FAILURE"},
        )
        assert again["launchRunReexecution"]["__typename"] == "LaunchRunSuccess", again
        *_, repaired = home.wait_for_runs(3)
        assert repaired.status is DagsterRunStatus.SUCCESS, home.messages(repaired)
        assert home.materialized(repaired) == {"00000": 1, "00001": 1, "00002": 1}
        home.check_committed(["00000", "00001", "00002"])
        assert {key: home.stamps()[key] for key in before} == before
        assert server.partitions() == {"materialized": ["00000", "00001", "00002"]}
