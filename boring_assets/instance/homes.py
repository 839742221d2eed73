"""Whose runs are whose, where several Dagster homes share one PostgreSQL.

Whether the process of a run lives is told by locks in the home that it was started from. Another home, be it
on another machine or in another container, cannot see them, so each run carries its home's name.
"""

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path

import dagster as dg
from dagster._core.instance import InstanceRef

from boring_assets.errors import SettingsError

HOME_TAG = "boring_assets/home"
"""Run tag: the home in which the lock of the run's process lies."""
WORKER_TAG = "boring_assets/worker"
"""Run tag: which worker process executes the run, as its process id and a name of its own."""
_FILE = ".home"
_NO_COMPUTE_LOGS = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
_PROJECT = Path(__file__).parents[2]


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


def open_instance(output_dir: str) -> dg.DagsterInstance:
    """Dagster's instance in `DAGSTER_HOME`, made where it is missing.

    Args:
        output_dir: The output's URI; without `DAGSTER_HOME`, each output has a home of its own below
            `~/.boring_assets`, so that the partitions of two datasets never mix.

    Returns:
        The instance; `DAGSTER_HOME` is set for this process and its children.

    Raises:
        SettingsError: The home cannot be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or _default_home(output_dir)).expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Two processes that set up one new home at once can collide in its database.
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            config, shipped = home / "dagster.yaml", _PROJECT / "dagster.yaml"
            if not config.exists() and shipped.exists():
                shutil.copyfile(shipped, config)
            os.environ["DAGSTER_HOME"] = str(home)
            # Dagster's copy of what a process prints would route the terminal through a file, and its
            # helper processes print tracebacks on Ctrl-C.
            ref = InstanceRef.from_dir(str(home), overrides={"compute_logs": _NO_COMPUTE_LOGS})
            instance = dg.DagsterInstance.from_ref(ref)
            instance.get_dynamic_partitions("")
            return instance
    except OSError as error:
        raise SettingsError(
            f"DAGSTER_HOME {home} cannot be used ({error}). Set it to a folder that you may write."
        ) from error


def _default_home(output_dir: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", output_dir.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "output"
    full = output_dir if "://" in output_dir else str(Path(output_dir).expanduser().resolve())
    return f"~/.boring_assets/{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
