"""Which runs have lost their process: each embedding run holds a lock in `DAGSTER_HOME` as long as it lives.

Dagster sees a killed run by the process that launched it, or by `run_monitoring`. Where both are gone, as
after a reboot, the run would count as running for ever, and its shards with it.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg


@contextmanager
def mark_alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Holds the run's lock; the kernel ends it with this process, however that ends."""
    folder = _folder(instance)
    folder.mkdir(exist_ok=True)
    path = folder / f"{run_id}.lock"
    staged = folder / f".{run_id}"
    with staged.open("w") as lock:
        # A record lock: unlike flock's, it is not shared with children.
        fcntl.lockf(lock, fcntl.LOCK_EX)
        staged.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def fail_dead_runs(instance: dg.DagsterInstance) -> None:
    """Reports the failure of each run that was started from this home and has lost its process."""
    for path in _folder(instance).glob("*.lock"):
        if _is_locked(path):
            continue
        run = instance.get_run_by_id(path.stem)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, "The process of this run ended before the run did.")
        path.unlink(missing_ok=True)


def _folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "embedding_runs"


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+b") as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # it has just ended
        return True
    except (BlockingIOError, PermissionError):  # POSIX lets a lock that is held answer either
        return True
    return False
