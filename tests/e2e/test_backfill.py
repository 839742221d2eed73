"""A backfill launched in the webserver, over a selection with gaps."""

from collections import Counter

import pytest
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.instance.homes import WORKER_TAG
from boring_assets.output.judgement import CHECKS
from boring_assets.tags import RANGE_END_TAG, RANGE_START_TAG
from tests.e2e.processes import Home
from tests.e2e.webserver import Webserver
from tests.waiting import wait_for

LAUNCH = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status error { message }
    assetBackfillData { assetBackfillStatuses { ... on AssetPartitionsStatusCounts {
        numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed } } } } } }"""


def backfill(server: Webserver, backfill_id: str) -> dict:
    return server.ask(BACKFILL, id=backfill_id)["partitionBackfillOrError"]


def evaluations(home: Home, run: DagsterRun) -> int:
    """How many checks a run has evaluated."""
    return len(home.instance.all_logs(run.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION))


@pytest.mark.slow
def test_a_backfill_with_gaps_materializes_the_selected_partitions_only(home: Home) -> None:
    keys = home.add_shards(14, images=4)
    home.register()
    chosen = ["00000", *keys[1::2]]
    with home.webserver() as server:
        params = {"partitionNames": chosen, "assetSelection": [{"path": ASSET_KEY.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        backfill_id = launched["backfillId"]
        with home.daemon():
            home.wait_for_runs(len(chosen) - 1)
        with home.daemon():  # a backfill outlives its daemon, and a new daemon looks at it at once
            wait_for(
                lambda: backfill(server, backfill_id)["status"] not in ("REQUESTED", "COMPLETED"),
                "the backfill is complete",
                lambda: backfill(server, backfill_id),
            )
        ended = backfill(server, backfill_id)
        assert ended["status"] == "COMPLETED_SUCCESS", ended
        assert ended["assetBackfillData"]["assetBackfillStatuses"] == [
            {
                "numPartitionsTargeted": len(chosen),
                "numPartitionsMaterialized": len(chosen),
                "numPartitionsFailed": 0,
            }
        ]
        assert server.partitions() == {
            "materialized": chosen,
            "unmaterialized": sorted(set(keys) - set(chosen)),
        }
    runs = home.runs()
    assert all(run.status is DagsterRunStatus.SUCCESS for run in runs)
    ranges = sorted((run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) for run in runs)
    assert ranges == [("00000", "00001"), *((key, key) for key in keys[3::2])]
    assert len({run.tags[WORKER_TAG] for run in runs}) == 1, "one process did all of them"
    assert sum((home.materialized(run) for run in runs), start=Counter()) == dict.fromkeys(chosen, 1)
    home.check_committed(chosen, images=4)
    home.check_one_at_a_time()
    assert set(map(evaluations, [home] * len(runs), runs)) == {
        0,
        len(CHECKS),
    }  # by the last, which saw everything
