"""The sensor on the failure rate: real materializations in, a real webhook's requests out."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from boring_assets.datasets import ASSET_KEY
from boring_assets.definitions import build_definitions
from boring_assets.errors import SettingsError
from boring_assets.monitoring import alerts
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import load_settings
from tests.assets.project import Project, stored
from tests.seaweed import free_ports

SECRET = "planted-0123456789"


class Receiver(ThreadingHTTPServer):
    """A webhook: answers as it is told, then with 200, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[dict[str, Any]] = []
        self.tries = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/services/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.tries += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = self.server.answers.pop(0) if self.server.answers else 200
        if code == 200 and self.path == f"/services/{SECRET}":
            self.server.got.append(body)
        self.send_response(code)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output short."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(alerts.time, "sleep", lambda _: None)  # between tries
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def tick(project: Project, cursor: str | None = None) -> SensorExecutionData:
    sensor = build_definitions(project.settings).resolve_sensor_def("failure_rate_alert")
    return sensor.evaluate_tick(dg.build_sensor_context(instance=project.instance, cursor=cursor))


def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhook: str, broken: tuple[int, ...] = (0, 0, 9, 9)
) -> Project:
    for number, count in enumerate(broken):
        write_sample_data(tmp_path / "in", 1, 10, "parquet", image_size=32, broken=count, first_shard=number)
    settings = {"alert_webhook": webhook, "preview_images": 0}
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", **settings)
    project.register()
    return project


def test_a_period_of_failures_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    project = make(tmp_path, monkeypatch, receiver.url)
    quiet = tick(project)
    assert quiet.skip_message == "No alert: 0 of 0 images failed in the last 60 minutes; the limit is 10%."
    project.run("00000", "00001")
    fine = tick(project, quiet.cursor)
    assert "No alert: 0 of 20 images (0.0%) failed" in fine.skip_message
    assert not fine.asset_events
    assert not receiver.got

    project.run("00002")
    alert = tick(project, fine.cursor)
    reasons = project.table("00002", "image_failures")["reason"].to_pylist()
    there = 30 - reasons.count("not_downloaded")
    failed = len(reasons) - reasons.count("not_downloaded")
    assert 0 < failed < len(reasons)
    (sent,) = receiver.got
    assert f"Too many images fail: {failed} of {there} images" in sent["text"]
    assert "the limit is 10%" in sent["text"]
    assert f"00002: {failed} of {10 - reasons.count('not_downloaded')} images failed" in sent["text"]
    assert sent["failure_rate"] == pytest.approx(failed / there)
    assert sent["decode_error"] == reasons.count("decode_error")
    (event,) = alert.asset_events
    assert isinstance(event, dg.AssetObservation)
    assert (event.asset_key, event.description) == (ASSET_KEY, sent["text"])
    assert "Alerted: " in alert.skip_message

    project.run("00003")
    still = tick(project, alert.cursor)
    assert "Alerted before, and still too many: " in still.skip_message
    assert not still.asset_events
    assert len(receiver.got) == 1

    # The hour passes; then it begins again.
    later = json.loads(still.cursor)
    later["ticks"] = [[when - 3601, *counts] for when, *counts in later["ticks"]]
    over = tick(project, json.dumps(later))
    assert "No alert: 0 of 0 images" in over.skip_message
    project.run_anew("00003")
    assert tick(project, over.cursor).asset_events
    assert len(receiver.got) == 2
    assert SECRET.encode() not in b"".join(stored(tmp_path))


def test_an_alert_that_was_not_delivered_is_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    project = make(tmp_path, monkeypatch, receiver.url, broken=(9,))
    project.run("00000")
    caplog.set_level("DEBUG")
    receiver.answers = [500, 503, 429]
    first = tick(project)
    assert "was not delivered, and will be sent again: the webhook answered 429" in first.skip_message
    assert len(first.asset_events) == 1
    receiver.answers = [302, 200]
    second = tick(project, first.cursor)
    assert "the webhook answered 302" in second.skip_message, "a redirect is not followed"
    assert receiver.tries == 4, "nor is it tried again at once"
    third = tick(project, second.cursor)
    assert not third.asset_events
    assert "delivered" not in third.skip_message
    tick(project, third.cursor)
    assert len(receiver.got) == 1

    (port,) = free_ports(1)
    dead = make(tmp_path / "dead", monkeypatch, f"http://127.0.0.1:{port}/{SECRET}", broken=(9,))
    dead.run("00000")
    unreachable = tick(dead)
    assert "the webhook cannot be reached (ConnectionRefusedError)" in unreachable.skip_message
    printed = capfd.readouterr().err
    assert printed.count("WARNING - Too many images fail") == 2, "one for each home"
    said = printed + caplog.text + str([first, second, third, unreachable]) + repr(dead.settings)
    assert SECRET not in said


def test_the_alert_sensor_is_off_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make(tmp_path, monkeypatch, "", broken=(9,))
    sensor = build_definitions(project.settings).resolve_sensor_def("failure_rate_alert")
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    project.run("00000")
    assert len(tick(project).asset_events) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALERT_WEBHOOK", f"http://hooks.example.com/{SECRET}"),
        ("ALERT_WEBHOOK", SECRET),
        ("ALERT_WEBHOOK", f"https://[::1/{SECRET}"),
        ("METRICS_PUSHGATEWAY", f"ftp://me:{SECRET}@host"),
        ("METRICS_PUSHGATEWAY", f"me:{SECRET}@host:9091"),
    ],
)
def test_a_wrong_url_is_refused_unshown(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"BORING_{name}", value)
    with pytest.raises(SettingsError, match=f"BORING_{name} must be an http") as caught:
        load_settings()
    cause = caught.value.__cause__
    assert SECRET not in f"{caught.value} {cause}"


def test_a_secret_that_is_not_text_is_refused_without_being_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text(f'alert_webhook = ["https://host/{SECRET}"]')
    monkeypatch.setenv("BORING_CONFIG", str(tmp_path / "settings.toml"))
    with pytest.raises(SettingsError, match="BORING_ALERT_WEBHOOK expected a text") as caught:
        load_settings()
    assert SECRET not in str(caught.value)
