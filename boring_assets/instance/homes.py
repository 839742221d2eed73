"""Whose runs are whose, where several Dagster homes share one PostgreSQL.

Whether the process of a run lives is told by locks in the home that it was started from. Another home, be it
on another machine or in another container, cannot see them, so each run carries its home's name.
"""

import os
import uuid
from pathlib import Path

import dagster as dg

HOME_TAG = "boring_assets/home"
"""Run tag: the home in which the lock of the run's process lies."""
WORKER_TAG = "boring_assets/worker"
"""Run tag: which worker process executes the run, as its process id and a name of its own."""
_FILE = ".home"


def home_name(instance: dg.DagsterInstance) -> str:
    """The name of the instance's home, made up when it is first asked for.

    Args:
        instance: Dagster's instance.

    Returns:
        12 hex digits, kept in a file of the home.

    Raises:
        OSError: The home cannot be written.
    """
    file = Path(instance.root_directory) / _FILE
    if not file.exists():
        made = file.with_name(f"{_FILE}-{uuid.uuid4().hex}")
        made.write_text(uuid.uuid4().hex[:12])
        try:
            os.link(made, file)  # unlike a write, whole or not at all, and never over another's
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return file.read_text()


def is_of_home(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the instance's home has the lock of the run's process; also where the run names no home."""
    return run.tags.get(HOME_TAG) in (None, home_name(instance))
