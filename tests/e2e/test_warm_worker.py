"""The worker process that runs share, under the real daemon and webserver."""

import psutil
import pytest
from dagster import DagsterRunStatus

from boring_assets.instance.homes import WORKER_TAG
from tests.e2e.processes import Home
from tests.e2e.test_killed_run import launch
from tests.waiting import wait_for

IMAGES = 200  # seconds of work: a worker looks once a second whether its run is canceled
TERMINATE = """mutation($id: String!) { terminateRun(runId: $id) {
    __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""


@pytest.mark.heavy
def test_a_run_is_canceled_then_done_and_another_outlives_a_reboot(home: Home) -> None:
    keys = home.add_shards(60, images=IMAGES)
    late = home.add_shards(20, first=60, images=IMAGES)
    home.register()
    with home.webserver() as server:
        with home.daemon():
            first = launch(server, keys[0], keys[-1])
            wait_for(lambda: home.committed(), "a shard is committed", every=0.02)
            assert server.ask(TERMINATE, id=first)["terminateRun"]["__typename"] == "TerminateRunSuccess"
            [canceled] = home.wait_for_runs(1)
            assert canceled.status is DagsterRunStatus.CANCELED
            assert len(home.committed()) < len(keys)
            launch(server, keys[0], keys[-1])
            _, done = home.wait_for_runs(2)
            assert done.status is DagsterRunStatus.SUCCESS
            home.check_committed(keys, images=IMAGES)

            run_id = launch(server, late[0], late[-1])
            wait_for(lambda: len(home.committed()) > len(keys), "a shard is committed", every=0.02)
            run = home.instance.get_run_by_id(run_id)
            assert run
            # It ends only with the daemon, so no process is left that could report its end.
            psutil.Process(int(run.tags[WORKER_TAG].partition("-")[0])).suspend()
        *_, stuck = home.runs()
        assert stuck.status is DagsterRunStatus.STARTED
        with home.daemon():
            *_, failed, retry = home.wait_for_runs(4)
    assert failed.status is DagsterRunStatus.FAILURE
    assert "has ended" in "\n".join(log.message for log in home.instance.all_logs(run_id))
    assert retry.status is DagsterRunStatus.SUCCESS
    home.check_committed(keys + late, images=IMAGES)
