"""Uses several devices at once: each worker is a process with its own Dagster runs, model and device.

A worker takes a free device, see `boring_assets.engine.model.devices`, and prints its progress as JSON lines.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from boring_assets.commands.runs import Outcome, run_range
from boring_assets.engine.results import Progress
from boring_assets.instance.homes import open_instance
from boring_assets.monitoring.logs import set_up_process
from boring_assets.settings import PREFIX, load_settings

_TICK_SECONDS = 0.25
_lock = threading.Lock()

Share = tuple[str, str, str]
"""The name of a part, empty where the dataset is not split; first and last partition key of a range."""


def run_in_workers(
    shares: Sequence[Sequence[Share]], progress: Progress, tags: Mapping[str, str] | None = None
) -> list[Outcome]:
    """Runs each share of ranges in its own process, all at once; returns how each run ended.

    The CPU's cores are divided among the workers. Settings reach them by the environment.
    """
    environment = _environment(len(shares))
    command = [sys.executable, "-m", "boring_assets.commands.parallel", json.dumps(dict(tags or {}))]
    workers = [
        subprocess.Popen([*command, json.dumps(share)], env=environment, stdout=subprocess.PIPE, text=True)
        for share in shares
    ]
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            return [
                outcome
                for outcomes in pool.map(partial(_follow, progress=progress), workers)
                for outcome in outcomes
            ]
        except BaseException:  # Ctrl-C, for example: no worker continues without its parent
            for worker in workers:
                worker.terminate()
            raise


def _environment(workers: int) -> dict[str, str]:
    cores = str(max(1, len(os.sched_getaffinity(0)) // workers))
    return {"OMP_NUM_THREADS": cores, f"{PREFIX}DECODE_WORKERS": cores, **os.environ}


def _follow(worker: "subprocess.Popen[str]", progress: Progress) -> list[Outcome]:
    """Counts what a worker reports into this process's progress, and returns its outcomes."""
    outcomes: list[Outcome] = []
    before = {"embedded": 0, "failed": 0}
    with worker:
        for line in worker.stdout or ():
            report: dict[str, Any] = json.loads(line)
            if "error" in report:
                outcomes.append(Outcome(**report))
                continue
            with _lock:
                progress.embedded += report["embedded"] - before["embedded"]
                progress.failed += report["failed"] - before["failed"]
            before = report
    if worker.returncode:
        outcomes.append(Outcome(f"a worker process ended with code {worker.returncode}"))
    return outcomes


def main() -> None:
    """Runs the ranges of one worker, one after another; the entry point of a worker process."""
    settings = load_settings()
    set_up_process(settings)
    instance = open_instance(settings.output_dir)
    stop, progress = threading.Event(), Progress()
    reporter = threading.Thread(target=_report, args=(progress, stop), daemon=True)
    reporter.start()
    outcomes = []
    tags, share = map(json.loads, sys.argv[1:])
    for part, first, last in share:
        outcomes.append(run_range(settings, instance, first, last, part=part, tags=tags, progress=progress))
        if outcomes[-1].stops:
            break
    stop.set()
    reporter.join()
    for outcome in outcomes:
        _print(vars(outcome))


def _report(progress: Progress, stop: threading.Event) -> None:
    while not stop.wait(_TICK_SECONDS):
        try:
            _print({"embedded": progress.embedded, "failed": progress.failed})
        except BrokenPipeError:  # the command line was killed
            os._exit(1)
    _print({"embedded": progress.embedded, "failed": progress.failed})


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
