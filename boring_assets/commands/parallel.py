"""Uses several devices at once: each worker is a process with its own Dagster runs, model and device.

A worker takes a free device, see `boring_assets.engine.model.devices`, and prints its progress as JSON lines.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

from boring_assets.commands.runs import Outcome, run_range
from boring_assets.engine.results import Progress
from boring_assets.instance.homes import open_instance
from boring_assets.monitoring.logs import set_up_process
from boring_assets.settings import PREFIX, load_settings

_TICK_SECONDS = 0.25
_printing = threading.Lock()

Share = tuple[str, str, str, str]
"""A range to run.

The name of a part, empty where the dataset is not split; first and last partition key; the id of the run.
"""


class Workers:
    """Processes that each take the next range as soon as they have run the one before."""

    def __init__(
        self, shares: Iterator[Share], progress: Progress, tags: Mapping[str, str] | None = None
    ) -> None:
        """Starts no process yet.

        Args:
            shares: The ranges; threads take them in turn.
            progress: Counts the samples.
            tags: Of each run.
        """
        self._shares, self._progress, self._tags = shares, progress, dict(tags or {})
        self._lock = threading.Lock()

    def run(self, count: int) -> list[Outcome]:
        """Runs all ranges in some processes; returns how each run ended.

        The CPU's cores are divided among the workers. Settings reach them by the environment.
        """
        environment = _environment(count)
        command = [sys.executable, "-m", "boring_assets.commands.parallel", json.dumps(self._tags)]
        pipe = subprocess.PIPE
        workers = [
            subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
            for _ in range(count)
        ]
        with ThreadPoolExecutor(count) as pool:
            try:
                return [outcome for outcomes in pool.map(self._follow, workers) for outcome in outcomes]
            except BaseException:  # Ctrl-C, for example: no worker continues without its parent
                for worker in workers:
                    worker.terminate()
                raise

    def _follow(self, worker: "subprocess.Popen[str]") -> list[Outcome]:
        """Keeps a worker at work, counts what it reports, and returns its outcomes."""
        outcomes: list[Outcome] = []
        before = {"embedded": 0, "failed": 0}
        assert worker.stdin
        assert worker.stdout
        with suppress(BrokenPipeError), worker:  # it may have died with a range in the pipe
            self._send_next(worker.stdin)
            for line in worker.stdout:
                report: dict[str, Any] = json.loads(line)
                if "error" in report:
                    outcomes.append(Outcome(**report))
                    if not outcomes[-1].stops:
                        self._send_next(worker.stdin)
                    continue
                with self._lock:
                    self._progress.embedded += report["embedded"] - before["embedded"]
                    self._progress.failed += report["failed"] - before["failed"]
                before = report
        if worker.returncode:
            error = (
                f"A worker process ended with code {worker.returncode}. If that is -9, the machine ran out "
                "of memory, or somebody killed it. Run the same command again."
            )
            outcomes.append(Outcome(error))
        return outcomes

    def _send_next(self, worker: IO[str]) -> None:
        """Sends the next range, or ends the worker where none is left."""
        with self._lock:
            share = next(self._shares, None)
        with suppress(BrokenPipeError):  # it has died, which its exit code says
            if share:
                print(json.dumps(share), file=worker, flush=True)
            else:
                worker.close()


def _environment(workers: int) -> dict[str, str]:
    cores = str(max(1, len(os.sched_getaffinity(0)) // workers))
    return {"OMP_NUM_THREADS": cores, f"{PREFIX}DECODE_WORKERS": cores, **os.environ}


def main() -> None:
    """Runs the ranges that the command line sends, one after another; the entry point of a worker process."""
    settings = load_settings()
    set_up_process(settings)
    instance = open_instance(settings.output_dir)
    stop, progress = threading.Event(), Progress()
    reporter = threading.Thread(target=_report, args=(progress, stop), daemon=True)
    reporter.start()
    tags = json.loads(sys.argv[1])
    for line in sys.stdin:
        part, first, last, run_id = json.loads(line)
        outcome = run_range(
            settings, instance, first, last, part=part, tags=tags, progress=progress, run_id=run_id
        )
        _print(vars(outcome))
        if outcome.stops:
            break
    stop.set()
    reporter.join()


def _report(progress: Progress, stop: threading.Event) -> None:
    while not stop.wait(_TICK_SECONDS):
        try:
            _print({"embedded": progress.embedded, "failed": progress.failed})
        except BrokenPipeError:  # the command line was killed
            os._exit(1)
    _print({"embedded": progress.embedded, "failed": progress.failed})


def _print(line: dict[str, Any]) -> None:
    with _printing:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
