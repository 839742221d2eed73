"""Dagster's webserver as the tests talk to it: GraphQL, and waiting for what it shows."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import dagster as dg

from boring_assets.datasets import ASSET_KEY
from tests.waiting import HANG_SECONDS, wait_for

LOCATION = {"repositoryLocationName": "boring_assets", "repositoryName": "__repository__"}


@dataclass(frozen=True)
class Webserver:
    """A running webserver, through its GraphQL."""

    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        """Sends a query; an error of GraphQL fails the test."""
        request = urllib.request.Request(
            self.url,
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=HANG_SECONDS) as response:
            answer = json.load(response)
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def is_up(self) -> bool:
        try:
            answer = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return bool(answer["repositoriesOrError"].get("nodes"))

    def turn_on(self, sensor: str, location: str = LOCATION["repositoryLocationName"]) -> None:
        """Turns a sensor of a code location on."""
        started = self.ask(
            """mutation($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
                ... on Sensor { sensorState { status } } ... on PythonError { message } } }""",
            sensor={**LOCATION, "repositoryLocationName": location, "sensorName": sensor},
        )
        assert started["startSensor"]["sensorState"]["status"] == "RUNNING", started

    def turn_off(self, sensor: str) -> None:
        """Turns a sensor off."""
        stopped = self.ask(
            """mutation($id: String!) { stopSensor(id: $id) { ... on StopSensorMutationResult {
                instigationState { status } } ... on PythonError { message } } }""",
            id=self._sensor(sensor)["id"],
        )
        assert stopped["stopSensor"]["instigationState"]["status"] == "STOPPED", stopped

    def check_idle(self, sensor: str) -> None:
        """Waits until a sensor has looked twice more, and saw nothing to do."""
        seen = {tick["tickId"] for tick in self._sensor(sensor)["ticks"]}

        def fresh() -> list[str]:
            return [tick["status"] for tick in self._sensor(sensor)["ticks"] if tick["tickId"] not in seen]

        wait_for(lambda: len([status for status in fresh() if status != "STARTED"]) >= 2, f"{sensor} ticks")
        assert set(fresh()) <= {"SKIPPED", "STARTED"}

    def wait_for_backfill(self) -> str:
        """Waits until the only backfill has ended, and gives how."""

        def status() -> str:
            answer = self.ask(
                """{ partitionBackfillsOrError { ... on PartitionBackfills { results { status } } } }"""
            )
            (one,) = answer["partitionBackfillsOrError"]["results"]
            return str(one["status"])

        wait_for(lambda: status() not in ("REQUESTED", "COMPLETED", "FAILING"), "the backfill ends", status)
        return status()

    def _sensor(self, sensor: str) -> Any:
        """A sensor's state, with its ticks, the latest first."""
        answer = self.ask(
            """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
                sensorState { id ticks(limit: 30) { tickId status } } } } }""",
            sensor={**LOCATION, "sensorName": sensor},
        )
        return answer["sensorOrError"]["sensorState"]

    def partitions(self, asset: dg.AssetKey = ASSET_KEY) -> dict[str, list[str]]:
        """What an asset's page shows: partitions by status, empty ones left out."""
        answer = self.ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
                assetPartitionStatuses { ... on DefaultPartitionStatuses {
                    materializedPartitions failedPartitions unmaterializedPartitions materializingPartitions
                } } } } }""",
            key={"path": asset.path},
        )
        statuses = {
            name.removesuffix("Partitions"): set(keys)
            for name, keys in answer["assetNodeOrError"]["assetPartitionStatuses"].items()
        }
        statuses["unmaterialized"] -= statuses["failed"]  # the webserver counts those twice
        return {name: sorted(keys) for name, keys in statuses.items() if keys}
