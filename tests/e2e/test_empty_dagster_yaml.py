"""A deployment with an empty dagster.yaml: no run_retries, no run_monitoring, Dagster's own launcher."""

from itertools import pairwise
from pathlib import Path

import pytest
from dagster import DagsterEventType, DagsterRunStatus

from tests.e2e.processes import Home
from tests.e2e.test_killed_run import kill
from tests.e2e.webserver import wait_for

SHARDS = 30


@pytest.mark.heavy
def test_the_sensor_recovers_a_killed_run(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    home = Home.make(tmp_path, empty)
    keys = home.add_shards(SHARDS, images=4)
    with home.webserver() as server, home.daemon():
        server.turn_on("new_shards")
        wait_for(lambda: len(home.committed()) >= 3, "some shards are committed", every=0.02)
        (first,) = home.runs()
        kill(home, first.run_id)
        wait_for(
            lambda: server.partitions() == {"materialized": keys},
            "the sensor has recovered the rest",
            lambda: [(run.status.value, run.tags) for run in home.runs()],
        )
        server.turn_off("new_shards")
        killed, *others = home.wait_for_runs(len(home.runs()))
    assert killed.status is DagsterRunStatus.FAILURE
    assert {run.status for run in others} == {DagsterRunStatus.SUCCESS}
    home.check_committed(keys, images=4)
    check_one_step_at_a_time(home)


def check_one_step_at_a_time(home: Home) -> None:
    """No run's step began while another's held the device: the pool has one slot, as there is one device."""
    spans = []
    for run in home.runs():
        logs = home.instance.all_logs(
            run.run_id,
            of_type={
                DagsterEventType.STEP_START,
                DagsterEventType.STEP_SUCCESS,
                DagsterEventType.RUN_FAILURE,
            },
        )
        times = [entry.timestamp for entry in logs]
        spans.append((times[0], times[-1]))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), spans
