"""A split dataset that grows under a real daemon: parts that begin are loaded and embedded by themselves."""

import pytest
from dagster import DagsterRunStatus

from boring_assets.datasets import Dataset
from tests.e2e.processes import Home

RELOAD = """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) {
    ... on WorkspaceLocationEntry { loadStatus } } }"""


@pytest.mark.heavy
def test_new_parts_are_loaded_without_a_person(home: Home) -> None:
    config = home.root / "dagster" / "dagster.yaml"
    config.write_text(config.read_text().replace("idle_seconds: 60", "idle_seconds: 600"))
    parts = [Dataset().of_part(number) for number in (1, 2, 3)]
    with home.webserver(split="2") as server, home.daemon(split="2"):
        server.turn_on("new_shards")
        # The same warm worker is offered all of these runs, and knows the first part only.
        for number in (1, 2, 3):
            home.add_shards(2, first=2 * number, images=4)
            home.wait_for_runs(number)
        assert server.ask(RELOAD, name="boring_assets")["reloadRepositoryLocation"]["loadStatus"] == "LOADED"
        for number, part in enumerate(parts, 1):
            keys = [f"{2 * number:05d}", f"{2 * number + 1:05d}"]
            assert server.partitions(part.embeddings) == {"materialized": keys}
    assert [run.job_name for run in home.runs()] == [f"part_00{number}_embed_shards" for number in (1, 2, 3)]
    assert {run.status for run in home.runs()} == {DagsterRunStatus.SUCCESS}
    home.check_committed([f"{number:05d}" for number in range(2, 8)], images=4)
