"""Opens the Dagster home, and knows which home started a run.

The process of a run is alive while it holds a lock in the home that started it. Where several homes share one
PostgreSQL, a home on another machine or in another container cannot see that lock, so each run is tagged with
its home's name.
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
from sqlalchemy.pool import NullPool

from boring_assets.errors import SettingsError
from boring_assets.instance.sqlite import keep_files_open

HOME_TAG = "boring_assets/home"
"""Run tag: the name of the home that started the run."""
WORKER_TAG = "boring_assets/worker"
"""Run tag: the worker process that executes the run, as its process id and a unique name."""
_NAME_FILE = ".home"
_NO_COMPUTE_LOGS = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
_SHIPPED_CONFIG = Path(__file__).parents[1] / "dagster.yaml"
_OLD_STORAGE = "boring_assets.instance.local_storage"


def home_name(instance: dg.DagsterInstance) -> str:
    """Returns the name of the instance's home: 12 hex digits in a file there, written on the first call.

    Raises:
        OSError: The home cannot be written.
    """
    file = Path(instance.root_directory) / _NAME_FILE
    if not file.exists():
        new = file.with_name(f"{_NAME_FILE}-{uuid.uuid4().hex}")
        new.write_text(uuid.uuid4().hex[:12])
        try:
            os.link(new, file)  # unlike a write, atomic, and it never replaces another process's name
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file.read_text()


def belongs_to_home(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Returns whether the instance's home started the run; True for a run without the tag."""
    return run.tags.get(HOME_TAG) in (None, home_name(instance))


def open_instance(output_dir: str) -> dg.DagsterInstance:
    """Opens Dagster's instance in `DAGSTER_HOME`, which is created where it is missing.

    `DAGSTER_HOME` is then set for this process and its children.

    Args:
        output_dir: The output's URI. Without `DAGSTER_HOME`, each output has its own home below
            `~/.boring_assets`, so the partitions of two datasets never mix.

    Raises:
        SettingsError: The home cannot be created or written, or its dagster.yaml names a removed module.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or _default_home(output_dir)).expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Two processes that create the database of a new home at once can collide.
        with (home / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            config = home / "dagster.yaml"
            if not config.exists():
                shutil.copyfile(_SHIPPED_CONFIG, config)
            if _OLD_STORAGE in config.read_text():
                raise SettingsError(
                    f"{config} names {_OLD_STORAGE}, which has been removed. Delete the section `storage` "
                    "from that file: Dagster's own SQLite takes its place, and the next `embed` or sensor "
                    "tick records what is committed without embedding it again."
                )
            os.environ["DAGSTER_HOME"] = str(home)
            # Dagster's capture of a process's output would redirect the terminal to a file, and its helper
            # processes print tracebacks on Ctrl-C.
            ref = InstanceRef.from_dir(str(home), overrides={"compute_logs": _NO_COMPUTE_LOGS})
            instance = dg.DagsterInstance.from_ref(ref)
            keep_connections_open(instance)
            instance.get_dynamic_partitions("")
            return instance
    except OSError as error:
        raise SettingsError(
            f"DAGSTER_HOME {home} cannot be used ({error}). Set it to a folder that you can write to."
        ) from error


def keep_connections_open(instance: dg.DagsterInstance) -> None:
    """Makes the connections to Dagster's databases stay open for the next statement.

    Outside of its webserver, Dagster opens one for each statement, which takes most of the time of an event:
    a run of 1,000 partitions begins with 1,000 events. docs/deployment.md has the figures of PostgreSQL.
    """
    keep_files_open(Path(instance.root_directory))
    engine = getattr(instance.event_log_storage, "_engine", None)
    if engine is not None and isinstance(engine.pool, NullPool):
        # Recycled soon: a firewall may drop an idle connection without a word.
        instance.optimize_for_webserver(statement_timeout=0, pool_recycle=60, max_overflow=20)


def _default_home(output_dir: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", output_dir.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "output"
    full = output_dir if "://" in output_dir else str(Path(output_dir).expanduser().resolve())
    return f"~/.boring_assets/{name}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
