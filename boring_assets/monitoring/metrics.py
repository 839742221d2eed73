"""Prometheus metrics of the runs that embed: a file for node_exporter, a push to a Pushgateway, or both.

Runs are batch jobs: they end before they are scraped, several run at once, and labels by run or partition
would grow for ever. So all runs of a machine into one output share one set of metrics, and its counters
continue from run to run. A run updates it at its start, every ten seconds, and at its end.
"""

import fcntl
import hashlib
import json
import re
import resource
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from boring_assets.engine.results import Progress
from boring_assets.errors import SettingsError
from boring_assets.monitoring.metric_families import GONE_SECONDS, families
from boring_assets.secrets import without_secrets
from boring_assets.settings import Settings

if TYPE_CHECKING:
    import torch

_EVERY_SECONDS = 10.0
_PUSH_SECONDS = 5.0
LOCK_SECONDS = 10.0
"""How long a run waits for another one that writes the metrics and may hang."""
_JOB = "boring_assets"


@dataclass(frozen=True)
class Metrics:
    """Targets of metrics: `BORING_METRICS_DIR` and `BORING_METRICS_PUSHGATEWAY`; each may be empty."""

    folder: str = ""
    gateway: str = field(default="", repr=False)  # may hold a password

    @classmethod
    def from_settings(cls, settings: Settings) -> "Metrics":
        """Returns the targets of the settings. Not a resource: Dagster would store and show the URL."""
        return cls(settings.metrics_dir, settings.metrics_pushgateway.get_secret_value())

    @contextmanager
    def run(
        self, output: str, home: str, progress: Progress, warn: Callable[[str], None]
    ) -> "Iterator[RunMetrics]":
        """Counts the run in the block; a run that raises counts as failed.

        Args:
            output: URI of the output, the label of everything.
            home: `DAGSTER_HOME`: counters are remembered there where there is no folder.
            progress: What the engine counts.
            warn: Called when metrics cannot be written or pushed; the run continues.

        Raises:
            SettingsError: The extra `monitoring` is missing.
        """
        if not (self.folder or self.gateway):
            yield RunMetrics(progress)
            return
        _require_client()
        folder = Path(self.folder or Path(home) / "metrics")
        keeper = _Keeper(folder, output, self, warn)
        run = RunMetrics(progress)
        stop = threading.Event()

        def keep() -> None:
            keeper.update(run)
            while not stop.wait(_EVERY_SECONDS):
                keeper.update(run)

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        outcome = "failure"
        try:
            yield run
            outcome = "success"
        finally:
            stop.set()
            thread.join()
            keeper.update(run, outcome)


class RunMetrics:
    """Counts of one run since the last `take`; safe to use from several threads."""

    def __init__(self, progress: Progress) -> None:
        """Starts to count."""
        self.id = uuid.uuid4().hex
        self.started = time.monotonic()
        self._progress, self._lock = progress, threading.Lock()
        self._counts: dict[tuple[str, str], float] = defaultdict(float)
        self._first = self._last = vars(progress).copy()
        self._asked = self.started
        self._device: torch.device | None = None
        self._device_name = ""

    def add(self, name: str, value: float = 1.0, label: str = "") -> None:
        """Adds to a counter of `COUNTERS`; the label is a value of `LABELS`, where the counter has one."""
        with self._lock:
            self._counts[name, label] += value

    def committed(self, facts: Mapping[str, Any]) -> None:
        """Counts a committed shard, by the metadata of its embeddings file and `image_bytes`."""
        self.add("shards_committed")
        self.add("samples_embedded", facts["embedded"])
        self.add("image_bytes", facts["image_bytes"])
        for reason, count in facts["failed_by_reason"].items():
            self.add("samples_failed", count, reason)

    def runs_on(self, name: str, device: "torch.device") -> None:
        """Sets the run's device, by its name in metrics and as torch's device."""
        self._device_name, self._device = name, device

    def take(self) -> dict[tuple[str, str], float]:
        """Returns and resets what was counted since the last call."""
        now, progress = time.monotonic(), vars(self._progress).copy()
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
        counts["run_seconds", ""] += now - self._asked
        counts["wait_seconds", "pixels"] += progress["starved_seconds"] - self._last["starved_seconds"]
        counts["wait_seconds", "writing"] += progress["blocked_seconds"] - self._last["blocked_seconds"]
        self.rate = _samples(progress, self._last) / max(now - self._asked, 1e-3)
        self._asked, self._last = now, progress
        return counts

    def put_back(self, counts: Mapping[tuple[str, str], float]) -> None:
        """Adds counts back that could not be written."""
        for (name, label), value in counts.items():
            self.add(name, value, label)

    def now(self) -> dict[str, Any]:
        """Returns the run's device, its rate and its highest use of memory."""
        memory = _memory_peak(self._device) if self._device is not None else 0
        return {"device": self._device_name, "rate": self.rate, "memory": memory}

    def whole(self) -> dict[str, float]:
        """Returns seconds and rate of the whole run, once it has ended."""
        seconds = time.monotonic() - self.started
        return {"seconds": seconds, "rate": _samples(self._last, self._first) / max(seconds, 1e-3)}


class _Keeper:
    """The metrics of one output on this machine; any number of processes add to them."""

    def __init__(self, folder: Path, output: str, config: Metrics, warn: Callable[[str], None]) -> None:
        self._output, self._config, self._warn = output, config, warn
        self._warned: set[str] = set()
        name = re.sub(r"[^A-Za-z0-9]+", "_", output.rstrip("/").rsplit("/", 1)[-1]).strip("_")
        stem = f"boring_assets_{name}_{hashlib.sha256(output.encode()).hexdigest()[:8]}"
        self._folder, self._file = folder, folder / f"{stem}.prom"
        self._state, self._lock = folder / f".{stem}.json", folder / f".{stem}.lock"

    def update(self, run: RunMetrics, ended: str = "") -> None:
        """Adds a run's counts; if they cannot be written, warns once and adds them the next time."""
        counts = run.take()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked(self._lock):
                state = self._read()
                _apply(state, run, counts, ended)
                self._write(state)
        except OSError as error:
            run.put_back(counts)
            self._warn_once(f"The metrics cannot be written to {self._folder}: {error}.")
            return
        if self._config.gateway:
            self._push()

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        end = time.monotonic() + LOCK_SECONDS
        with path.open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        raise TimeoutError(
                            f"another process has held {path} for {LOCK_SECONDS:g} s"
                        ) from error
                    time.sleep(0.02)
            yield

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state.read_text())
        except (FileNotFoundError, ValueError):  # Prometheus copes with a counter that restarts at 0
            state = {}
        return state if isinstance(state, dict) else {}

    def _write(self, state: dict[str, Any]) -> None:
        from prometheus_client import write_to_textfile

        staged = self._state.with_suffix(".new")
        staged.write_text(json.dumps(state))
        staged.replace(self._state)
        if self._config.folder:
            write_to_textfile(str(self._file), families(self._output, state))

    def _push(self) -> None:
        """Pushes the state under a lock, so that no counter goes back."""
        from prometheus_client import push_to_gateway
        from prometheus_client.exposition import basic_auth_handler

        parts = urlsplit(self._config.gateway)
        user, password = (part and unquote(part) for part in (parts.username, parts.password))
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

        def send(
            url: str, method: str, timeout: float | None, headers: list, data: bytes
        ) -> Callable[[], None]:
            return basic_auth_handler(url, method, timeout, headers, data, user, password)

        group = {"instance": socket.gethostname(), "output": self._output}
        try:
            with self._locked(self._lock.with_suffix(".push")):
                registry = families(self._output, self._read())
                push_to_gateway(bare, _JOB, registry, group, _PUSH_SECONDS, send)
        except Exception as error:  # any error of the network, a proxy or the gateway
            self._warn_once(f"The metrics cannot be pushed to {bare}: {type(error).__name__}: {error}.")

    def _warn_once(self, problem: str) -> None:
        problem = without_secrets(problem)
        if problem not in self._warned:
            self._warned.add(problem)
            self._warn(f"{problem} The run continues; this warning is not repeated.")


def _apply(
    state: dict[str, Any], run: RunMetrics, counts: Mapping[tuple[str, str], float], ended: str
) -> None:
    """Adds a run's counts to the state."""
    now = time.time()
    runs = {name: one for name, one in state.get("runs", {}).items() if now - one["time"] < GONE_SECONDS}
    live = run.now()
    if live["device"]:
        state.setdefault("devices", {})[live["device"]] = live["memory"]
    runs[run.id] = live | {"time": now}
    if ended:
        del runs[run.id]
        state["last"] = run.whole()
        counts = {**counts, ("runs", ended): 1.0}
        if ended == "success":
            state["success"] = now
    state["runs"], state["time"] = runs, now
    for (name, label), value in counts.items():
        counter = state.setdefault("counters", {}).setdefault(name, {})
        counter[label] = counter.get(label, 0.0) + value


def _require_client() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "BORING_METRICS_DIR or BORING_METRICS_PUSHGATEWAY is set, but prometheus_client is missing. "
            'Install the extra: pip install "boring_assets[monitoring]", or unset them.'
        ) from error


def _samples(now: Mapping[str, float], before: Mapping[str, float]) -> float:
    return now["embedded"] + now["failed"] - before["embedded"] - before["failed"]


def _memory_peak(device: "torch.device") -> int:
    """Returns the most bytes that this process has held of the device's memory, or of the machine's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
