"""A backfill with a damaged shard: one failed run, its reason on the partition, and the others kept."""

from typing import Any

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.output.judgement import CHECKS
from boring_assets.tags import DAMAGED_TAG
from tests.assets.project import metadata_of
from tests.e2e.processes import Home
from tests.e2e.webserver import Webserver

BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
REEXECUTE = """mutation($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
    __typename ... on PythonError { message } } }"""
SHOWN_CHECKS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    assetChecksOrError { ... on AssetChecks { checks {
        name executionForLatestMaterialization { status } } } } } } }"""
SHOWN_PARTITION = """query($key: AssetKeyInput!, $partition: String!) {
    assetNodeOrError(assetKey: $key) { ... on AssetNode {
        assetObservations(limit: 1, partitions: [$partition]) { description } } } }"""


def shown_checks(server: Webserver) -> dict[str, Any]:
    """What the asset's page says of each check."""
    node = server.ask(SHOWN_CHECKS, key={"path": ASSET_KEY.path})["assetNodeOrError"]
    return {
        one["name"]: (one["executionForLatestMaterialization"] or {}).get("status")
        for one in node["assetChecksOrError"]["checks"]
    }


def shown_reason(server: Webserver, partition: str) -> str:
    """What the page of a partition says last."""
    node = server.ask(SHOWN_PARTITION, key={"path": ASSET_KEY.path}, partition=partition)["assetNodeOrError"]
    return str(node["assetObservations"][0]["description"])


@pytest.mark.slow
def test_a_damaged_shard_fails_once_and_the_others_are_embedded(home: Home) -> None:
    *good, bad = home.add_shards(3, images=4)
    home.register()
    whole = (home.input / f"{bad}.parquet").read_bytes()
    (home.input / f"{bad}.parquet").write_bytes(whole[:-100])
    with home.webserver() as server, home.daemon():
        params = {"partitionNames": [*good, bad], "assetSelection": [{"path": ASSET_KEY.path}]}
        assert server.ask(BACKFILL, params=params)["launchPartitionBackfill"]["backfillId"]
        (run,) = home.wait_for_runs(1)
        server.wait_for_backfill()
        assert [one.run_id for one in home.runs()] == [run.run_id], "damage was retried"
        assert run.status is DagsterRunStatus.FAILURE
        assert home.instance.get_run_by_id(run.run_id).tags[DAMAGED_TAG] == "1"
        assert server.partitions() == {"materialized": good, "failed": [bad]}
        assert f"{bad}.parquet cannot be read as parquet" in shown_reason(server, bad)
        checks = shown_checks(server)
        assert set(checks) == set(CHECKS)
        assert set(checks.values()) <= {"SUCCEEDED", "FAILED"}, checks

        reexecution = {"parentRunId": run.run_id, "strategy": "FROM_FAILURE"}
        assert server.ask(REEXECUTE, params=reexecution)["launchRunReexecution"]["__typename"] == (
            "LaunchRunSuccess"
        )
        _, again = home.wait_for_runs(2)
        assert not home.instance.all_logs(again.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
        assert shown_checks(server).keys() == checks.keys()
        assert set(shown_checks(server).values()) <= {"SUCCEEDED", "FAILED"}, "the last word is a result"

    first = {event.partition: metadata_of(event) for event in home.events(run)}
    adopted = {event.partition: metadata_of(event) for event in home.events(again)}
    assert set(adopted) == set(first) == set(good)
    for key in good:
        assert adopted[key].pop("adopted")
        assert adopted[key].pop("embedded_by") == run.run_id
        assert adopted[key] == first[key]
