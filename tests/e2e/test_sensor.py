"""The sensor under a real daemon: shards dropped into the input are embedded, once each."""

import os
import shutil

import pytest
from dagster import DagsterRunStatus

from boring_assets.catalogue import RANGE_END_TAG, RANGE_START_TAG
from tests.e2e.processes import LOCATION, Home, Webserver, wait_for

TICKS = """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
    sensorState { status ticks(limit: 30) { status runIds skipReason error { message } } } } } }"""
SENSOR = {**LOCATION, "sensorName": "new_shards"}


def turn_on(server: Webserver) -> None:
    started = server.ask(
        """mutation($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
            ... on Sensor { sensorState { status } } ... on PythonError { message } } }""",
        sensor=SENSOR,
    )
    assert started["startSensor"]["sensorState"]["status"] == "RUNNING", started


def ticks(server: Webserver) -> list[dict]:
    """The sensor's ticks, the latest first."""
    return server.ask(TICKS, sensor=SENSOR)["sensorOrError"]["sensorState"]["ticks"]


def wait_for_idle_ticks(server: Webserver, count: int = 2) -> None:
    """Waits until the sensor has looked some times more, and each time saw nothing to do."""
    wait_for(
        lambda: [tick["status"] for tick in ticks(server)[:count]] == ["SKIPPED"] * count,
        "the sensor has nothing to do",
        lambda: ticks(server),
    )


@pytest.mark.slow
def test_dropped_and_changed_shards_are_embedded_once(home: Home) -> None:
    with home.webserver() as server, home.daemon():
        turn_on(server)
        home.add_shards(3)
        (run,) = home.wait_for_runs(1)
        assert run.status is DagsterRunStatus.SUCCESS, home.messages(run)
        assert home.materialized(run) == {"00000": 1, "00001": 1, "00002": 1}
        home.check_committed(["00000", "00001", "00002"])
        before = {key: path.stat().st_mtime_ns for key, path in home.committed().items()}

        home.add_shards(1, first=3)
        first_version = [shutil.copy2(home.input / f"00003.{kind}", home.root) for kind in ("parquet", "tar")]
        *_, run = home.wait_for_runs(2)
        assert home.materialized(run) == {"00003": 1}

        home.add_shards(1, first=3, seed=7)
        *_, run = home.wait_for_runs(3)
        assert home.materialized(run) == {"00003": 1}
        home.check_committed(["00000", "00001", "00002", "00003"])

        for path in first_version:  # put back as it was, times included
            shutil.copy2(path, home.input)
        *_, run = home.wait_for_runs(4)
        assert home.materialized(run) == {"00003": 1}
        home.check_committed(["00000", "00001", "00002", "00003"])

        now = {key: path.stat().st_mtime_ns for key, path in home.committed().items()}
        assert {key for key in now if now[key] != before.get(key)} == {"00003"}
        assert server.partitions() == {"materialized": ["00000", "00001", "00002", "00003"]}
        wait_for_idle_ticks(server)
        assert len(home.runs()) == 4
