"""Two runs at once under the real daemon, each on its own device; CPU devices stand for GPUs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterRunStatus

from boring_assets.datasets import ASSET_KEY
from boring_assets.instance.homes import WORKER_TAG
from boring_assets.tags import POOL
from tests.e2e.processes import Home
from tests.e2e.test_backfill import LAUNCH

DEVICES = "cpu:0,cpu:1"


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the locks; its path is short because Dagster puts sockets there too."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.heavy
def test_two_runs_at_once_take_two_devices(home: Home, locks: Path) -> None:
    keys = home.add_shards(21, images=4)
    home.register()
    chosen = [key for key in keys if key != "00010"]  # two ranges, so two runs
    with home.webserver() as server:
        params = {"partitionNames": chosen, "assetSelection": [{"path": ASSET_KEY.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        with home.daemon(device=DEVICES):
            runs = home.wait_for_runs(2)
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    used = [{event.metadata["device"].value for event in home.events(run)} for run in runs]
    assert sorted(used, key=str) == [{"cpu:0"}, {"cpu:1"}]
    assert len({run.tags[WORKER_TAG] for run in runs}) == 2
    first, second = sorted(home.instance.get_run_records(), key=lambda record: record.start_time or 0)
    assert second.start_time < first.end_time, "they did not run at once"
    limits = {pool.name: pool.limit for pool in home.instance.event_log_storage.get_pool_limits()}
    assert limits[POOL] == 2
    home.check_committed(chosen, images=4)
