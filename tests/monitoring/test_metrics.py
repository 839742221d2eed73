"""Metrics of runs, as Prometheus sees them: from a text file by node_exporter, and from a Pushgateway."""

import fcntl
import json
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from boring_assets.engine.results import Progress
from boring_assets.errors import SettingsError
from boring_assets.monitoring.metrics import Metrics
from boring_assets.sample_data import write_sample_data
from tests.assets.project import Project
from tests.e2e.processes import PROJECT
from tests.prometheus import get, monitoring, program
from tests.seaweed import free_ports
from tests.waiting import HANG_SECONDS, wait_for

Labels = frozenset[tuple[str, str]]
PASSWORD = "planted-0123456789"


def read(text: str) -> dict[str, dict[Labels, float]]:
    """Values by name and labels; those that only a gateway's copy has are left out."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset(one for one in sample.labels.items() if one[0] not in ("job", "instance"))
            assert labels not in found.setdefault(sample.name, {}), (
                "one series twice is an error to Prometheus"
            )
            found[sample.name][labels] = sample.value
    return {name: values for name, values in found.items() if name.startswith("boring_assets_")}


def read_file(folder: Path) -> dict[str, dict[Labels, float]]:
    (file,) = folder.glob("*.prom")
    return read(file.read_text())


def total(metrics: dict[str, dict[Labels, float]], name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for its, value in metrics[f"boring_assets_{name}"].items() if wanted <= its)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    write_sample_data(tmp_path / "in", 4, 20, "parquet", image_size=32, broken=4)
    settings = {"metrics_dir": str(tmp_path / "textfiles"), "preview_images": 0}
    made = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", **settings)
    made.register()
    return made


def test_prometheus_sees_what_runs_did(project: Project, tmp_path: Path) -> None:
    with monitoring(tmp_path) as servers:
        update = {"metrics_pushgateway": servers.gateway}
        project.settings = type(project.settings)(**project.settings.model_dump() | update)
        (tmp_path / "in" / "00002.parquet").write_bytes(b"no parquet")
        assert not project.run("00000").error
        one = read_file(servers.folder)
        assert project.run("00000", "00002").failed_shards.keys() == {"00002"}
        both = read_file(servers.folder)

        assert total(one, "samples_embedded_total") + total(one, "samples_failed_total") == 20
        failed = project.table("00000", "image_failures")["reason"].to_pylist()
        for reason in set(failed):
            assert total(one, "samples_failed_total", reason=reason) == failed.count(reason)
        assert total(both, "samples_embedded_total") == 32, "what was committed before is not counted again"
        assert total(both, "samples_failed_total") == 8
        assert (total(both, "shards_committed_total"), total(both, "shards_failed_total")) == (2, 1)
        outcomes = [total(both, "runs_total", outcome=outcome) for outcome in ("success", "failure")]
        assert outcomes == [1, 1]
        assert total(both, "runs_in_progress") == 0
        assert total(both, "run_seconds_total") > total(both, "wait_seconds_total") > 0
        assert total(both, "device_memory_peak_bytes", device="cpu") > 50 * 2**20
        assert total(both, "last_run_images_per_second") > 0
        pushed = read(get(f"{servers.gateway}/metrics"))
        assert {name: pushed[name] for name in both} == both

        (file,) = servers.folder.glob("*.prom")
        check = subprocess.run(
            [program("promtool"), "check", "metrics"],
            input=file.read_bytes(),
            capture_output=True,
            check=False,
        )
        assert (check.returncode, check.stdout + check.stderr) == (0, b"")

        count = "sum by (job) (boring_assets_samples_embedded_total) == 32"
        wait_for(lambda: len(servers.query(count)) == 2, "Prometheus has scraped both")
        for expression in dashboard_expressions():
            servers.query(expression)  # is understood
        now = [one for one in dashboard_expressions() if "rate" not in one and "increase" not in one]
        assert [one for one in now if not servers.query(one)] == []
        wait_for(lambda: all(rule["health"] == "ok" for rule in servers.rules()), "rules are evaluated")
        names = set(
            re.findall(r"\bboring_assets_\w+", json.dumps(dashboard_expressions()) + RULES.read_text())
        )
        assert names <= both.keys()


RULES = PROJECT / "deploy" / "monitoring" / "alerts.yaml"


def dashboard_expressions() -> list[str]:
    """Every PromQL expression of the dashboard, its variables filled in as Grafana does."""
    dashboard = json.loads((PROJECT / "deploy" / "monitoring" / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 10
    return [one.replace("$output", ".*").replace("$__rate_interval", "1m") for one in expressions]


def test_a_run_goes_on_when_metrics_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample_data(tmp_path / "in", 1, 4, "parquet", image_size=32)
    (port,) = free_ports(1)
    (tmp_path / "file").write_text("in the way")
    for number, bad in enumerate(
        (
            {"metrics_pushgateway": f"http://me:{PASSWORD}@127.0.0.1:{port}/at?token={PASSWORD}"},
            {"metrics_dir": str(tmp_path / "file")},
        )
    ):
        project = Project(
            tmp_path / f"home{number}", monkeypatch, tmp_path / "in", tmp_path / f"out{number}", **bad
        )
        project.register()
        outcome = project.run("00000")
        assert not outcome.error
        said = [log.user_message or "" for log in project.instance.all_logs(outcome.run_id)]
        (warning,) = [text for text in said if "metrics cannot be" in text]
        assert (f"127.0.0.1:{port}" if number == 0 else str(tmp_path / "file")) in warning
        assert not [text for text in said if PASSWORD in text]
        assert PASSWORD not in repr(project.settings)


def _count(folder: str, number: int) -> None:
    for _ in range(5):
        with Metrics(folder).run("s3://bucket/out", folder, Progress(), pytest.fail) as run:
            run.add("samples_embedded", 1)
            run.add("samples_failed", 2, "decode_error")
            run.runs_on(f"cuda:{number % 2}", _Cpu())


class _Cpu:
    type = "cpu"


def test_processes_at_once_add_up(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(str(tmp_path), number)) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    metrics = read_file(tmp_path)
    assert total(metrics, "samples_embedded_total") == 30
    assert total(metrics, "samples_failed_total") == 60
    assert total(metrics, "runs_total", outcome="success") == 30
    assert total(metrics, "runs_in_progress") == 0
    devices = {dict(labels)["device"] for labels in metrics["boring_assets_images_per_second"]}
    assert devices == {"cuda:0", "cuda:1"}
    assert not list(tmp_path.glob(".*.new"))


def test_a_killed_run_counts_as_in_progress_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from boring_assets.engine.results import Progress\n"
        "from boring_assets.monitoring.metrics import Metrics\n"
        "with Metrics(sys.argv[1]).run('out', '', Progress(), print):\n"
        "    while not list(Path(sys.argv[1]).glob('*.prom')): time.sleep(0.05)\n"
        "    os._exit(9)\n"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], check=False, timeout=HANG_SECONDS
        ).returncode
        == 9
    )
    assert total(read_file(tmp_path), "runs_in_progress") == 1
    for module in ("metrics", "metric_families"):
        monkeypatch.setattr(f"boring_assets.monitoring.{module}.GONE_SECONDS", 0.0)
    with Metrics(str(tmp_path)).run("out", "", Progress(), pytest.fail):
        pass
    assert total(read_file(tmp_path), "runs_in_progress") == 0


def test_a_process_that_hangs_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(str(tmp_path))
    with metrics.run("out", "", Progress(), pytest.fail):
        pass
    monkeypatch.setattr("boring_assets.monitoring.metrics.LOCK_SECONDS", 0.1)
    warned: list[str] = []
    (path,) = tmp_path.glob(".*.lock")
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with metrics.run("out", "", Progress(), warned.append) as run:
            run.add("samples_embedded", 5)
    (warning,) = warned
    assert f"another process has held {path}" in warning


def test_without_the_extra_the_run_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with (
        pytest.raises(SettingsError, match=r"boring_assets\[monitoring\]"),
        Metrics("folder").run("out", "", Progress(), pytest.fail),
    ):
        pass
