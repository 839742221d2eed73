"""Metrics, logs and the alert of runs that the real daemon has executed."""

import json

import pytest

from boring_assets.datasets import ASSET_KEY
from boring_assets.sample_data import write_sample_data
from tests.assets.project import stored
from tests.e2e.processes import Home
from tests.monitoring.test_alerts import SECRET, Receiver, receiver
from tests.monitoring.test_metrics import read_file, total
from tests.waiting import wait_for

__all__ = ["receiver"]


@pytest.mark.heavy
def test_runs_of_the_daemon_are_counted_logged_and_alerted(home: Home, receiver: Receiver) -> None:
    write_sample_data(home.root / "new", 2, 10, "parquet", image_size=64, broken=6)
    home.publish(home.root / "new")
    metrics = home.root / "metrics"
    settings = {"alert_webhook": receiver.url, "log_format": "json", "metrics_dir": str(metrics)}
    with home.daemon(**settings):
        started = home.run("dagster", "sensor", "start", "new_shards", "-w", "workspace.yaml", **settings)
        assert started.returncode == 0, started.stderr
        (run,) = home.wait_for_runs(1)
        assert run.is_success
        wait_for(lambda: receiver.got, "the sensor has alerted", lambda: home.messages(run))
        wait_for(lambda: home.instance.fetch_observations(ASSET_KEY, limit=1).records, "it is in Dagster too")

    found = read_file(metrics)
    assert total(found, "shards_committed_total") == 2
    assert total(found, "samples_embedded_total") + total(found, "samples_failed_total") == 20

    log = (home.root / "logs" / "dagster-daemon.txt").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    materializations = [line for line in lines if line.get("event") == "ASSET_MATERIALIZATION"]
    assert sorted(line["partition"] for line in materializations) == ["00000", "00001"]
    assert {line["run_id"] for line in materializations} == {run.run_id}

    (sent,) = receiver.got
    assert sent["text"].startswith("Too many images fail: ")
    assert not [one for one in stored(home.root) if SECRET.encode() in one]
