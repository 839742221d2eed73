"""The index follows the embeddings by itself, under a real daemon."""

import pytest
from dagster import AssetKey, DagsterRunStatus

from boring_assets.search.index import update_index
from boring_assets.search.lance import open_table
from resources.storage import open_root
from tests.e2e.processes import IMAGES, LOCATION, Home, Webserver, wait_for

SENSOR = {**LOCATION, "sensorName": "default_automation_condition_sensor"}


def turn_on(server: Webserver) -> None:
    started = server.ask(
        """mutation($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
            ... on Sensor { sensorState { status } } ... on PythonError { message } } }""",
        sensor=SENSOR,
    )
    assert started["startSensor"]["sensorState"]["status"] == "RUNNING", started


def ticks(server: Webserver) -> int:
    """How many looks of it have ended."""
    found = server.ask(
        """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
            sensorState { ticks(limit: 30) { status } } } } }""",
        sensor=SENSOR,
    )["sensorOrError"]["sensorState"]["ticks"]
    return sum(tick["status"] in ("SKIPPED", "SUCCESS") for tick in found)


@pytest.mark.slow
def test_the_index_is_updated_once_after_what_was_embedded(home: Home) -> None:
    home.add_shards(3)
    with home.webserver() as server, home.daemon():
        turn_on(server)
        wait_for(lambda: ticks(server) >= 1, "the automation sensor looks for the first time")
        done = home.run("boring-assets", "embed", str(home.input), str(home.output))
        assert done.returncode == 0, done.stderr
        key = AssetKey("embedding_index")
        wait_for(lambda: home.instance.get_latest_materialization_event(key) is not None, "it is indexed")
        runs = [run for run in home.runs() if run.asset_selection == {key}]
        wait_for(lambda: all(run.is_finished for run in home.runs()), "the run ends")
    assert [home.instance.get_run_by_id(run.run_id).status for run in runs] == [DagsterRunStatus.SUCCESS]  # type: ignore[union-attr]
    root = open_root(str(home.output))
    assert open_table(root).count_rows() == 3 * IMAGES
    assert update_index(root).added == 0
