"""The worker process that runs share, under the real daemon and webserver."""

from collections import Counter

import psutil
import pytest
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus

from boring_assets.assets.waiting_runs import CARRIER_TAG
from boring_assets.catalogue import ASSET_KEY
from boring_assets.homes import WORKER_TAG
from boring_assets.judgement import CHECKS
from tests.e2e.processes import Home, wait_for
from tests.e2e.test_backfill import LAUNCH
from tests.e2e.test_killed_run import launch

TERMINATE = """mutation($id: String!) { terminateRun(runId: $id) {
    __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""


def evaluations(home: Home, run: DagsterRun) -> int:
    """How many checks a run has evaluated."""
    return len(home.instance.all_logs(run.run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION))


@pytest.mark.slow
def test_a_scattered_backfill_is_done_by_one_process(home: Home) -> None:
    keys = home.add_shards(16, images=4)
    home.register()
    chosen = keys[::2]
    with home.webserver() as server:
        params = {"partitionNames": chosen, "assetSelection": [{"path": ASSET_KEY.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        with home.daemon():
            runs = home.wait_for_runs(len(chosen))
        assert server.partitions()["materialized"] == chosen
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    assert len({run.tags[WORKER_TAG] for run in runs}) == 1, [run.tags for run in runs]
    assert sum((home.materialized(run) for run in runs), start=Counter()) == dict.fromkeys(chosen, 1)
    home.check_committed(chosen, images=4)
    home.check_one_at_a_time()
    assert any(CARRIER_TAG in run.tags for run in runs), [run.tags for run in runs]
    checked = [evaluations(home, run) for run in runs]
    assert set(checked) == {0, len(CHECKS)}  # by the last one, which has seen everything


@pytest.mark.slow
def test_a_run_is_canceled_and_the_next_one_works(home: Home) -> None:
    keys = home.add_shards(60, images=4)
    home.register()
    with home.webserver() as server, home.daemon():
        first = launch(server, keys[0], keys[-1])
        wait_for(lambda: home.committed(), "a shard is committed", every=0.02)
        assert server.ask(TERMINATE, id=first)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        [canceled] = home.wait_for_runs(1)
        assert canceled.status is DagsterRunStatus.CANCELED
        assert len(home.committed()) < len(keys)
        launch(server, keys[0], keys[-1])
        _, done = home.wait_for_runs(2)
    assert done.status is DagsterRunStatus.SUCCESS
    home.check_committed(keys, images=4)


@pytest.mark.slow
def test_a_run_that_a_reboot_ended_is_retried(home: Home) -> None:
    keys = home.add_shards(60, images=4)
    home.register()
    with home.webserver() as server:
        with home.daemon():
            run_id = launch(server, keys[0], keys[-1])
            wait_for(lambda: home.committed(), "a shard is committed", every=0.02)
            run = home.instance.get_run_by_id(run_id)
            assert run
            # Ended only with the daemon: with it, nobody is left who could tell of its end.
            psutil.Process(int(run.tags[WORKER_TAG].partition("-")[0])).suspend()
        [stuck] = home.runs()
        assert stuck.status is DagsterRunStatus.STARTED
        with home.daemon():
            failed, retry = home.wait_for_runs(2)
    assert failed.status is DagsterRunStatus.FAILURE
    assert "has ended" in "\n".join(log.message for log in home.instance.all_logs(run_id))
    assert retry.status is DagsterRunStatus.SUCCESS
    home.check_committed(keys, images=4)
