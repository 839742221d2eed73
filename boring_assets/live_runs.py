"""Finds runs without a process: a process holds a lock in `DAGSTER_HOME` for each run that it executes.

Dagster sees a killed run by the process that launched it, or by `run_monitoring`. Where both are gone, as
after a reboot, the run would count as running for ever, and its shards with it.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

_held: set[str] = set()
"""Runs whose lock this process holds. A process must not probe its own lock, which would release it."""


@contextmanager
def mark_alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Holds the run's lock, unless this process holds it already; the kernel releases it with the process."""
    if run_id in _held:
        yield
        return
    path = lock_of(instance, run_id)
    path.parent.mkdir(exist_ok=True)
    staged = path.with_name(f".{run_id}")
    with staged.open("w") as lock:
        # A record lock: unlike flock's, it is not shared with children.
        fcntl.lockf(lock, fcntl.LOCK_EX)
        _held.add(run_id)
        staged.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            _held.discard(run_id)


def fail_dead_runs(instance: dg.DagsterInstance) -> None:
    """Marks each run as failed that was executed from this home and has lost its process."""
    for path in lock_of(instance, "*").parent.glob("*.lock"):
        if has_died(instance, path.stem):
            fail_unfinished(instance, path.stem)
            path.unlink(missing_ok=True)


def fail_unfinished(instance: dg.DagsterInstance, run_id: str) -> None:
    """Marks a run as failed whose process has ended, if Dagster does not know that it has."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, "The process of this run ended before the run did.")


def has_died(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Returns whether a run's process has ended before the run did; False for a run without a lock here."""
    return run_id not in _held and is_alive(lock_of(instance, run_id)) is False


def lock_of(instance: dg.DagsterInstance, run_id: str) -> Path:
    """Returns the path of a run's lock."""
    return Path(instance.root_directory) / "embedding_runs" / f"{run_id}.lock"


def is_alive(lock: Path) -> bool | None:
    """Returns whether the process that holds a lock file is alive; None where the file is missing.

    The kernel releases the lock when the process ends, also at a reboot. Not for use by the process itself.
    """
    try:
        with lock.open("r+b") as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except (BlockingIOError, PermissionError):  # POSIX allows either for a held lock
        return True
    return False
