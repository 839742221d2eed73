"""Dagster's SQLite storage, with connections that stay open and one database for all events.

Dagster's own opens a connection for each statement and closes it again, which has SQLite empty its log and
flush the disk each time, and makes a database of each run. An event costs 6 ms of CPU and up to 50 ms of
waiting that way, and a run of one shard has twenty. Tables and queries here are Dagster's.

dagster.yaml:

    storage:
      custom:
        module: boring_assets.instance.local_storage
        class: LocalStorage
        config:
          base_dir: /a/folder  # without it, DAGSTER_HOME
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dagster import Field, StringSource
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log import ConsolidatedSqliteEventLogStorage
from dagster._core.storage.event_log.polling_event_watcher import SqlPollingEventWatcher
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine, event

# Inherited by the processes that the first one starts.
_TEMPORARY_HOME = "_DAGSTER_TEMPORARY_HOME"


class LocalStorage(DagsterStorage, ConfigurableClass):
    """Runs, events and schedules in SQLite files below one folder, for the processes of one machine.

    What a process has committed stays when it is killed. When the machine loses power, the last moments of
    Dagster's record may be missing: the database is whole, and files without an event are adopted as after
    any crash.

    Args:
        base_dir: The folder; made where it is missing.
        inst_data: Where Dagster has the configuration from.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__()
        self._inst_data = inst_data
        with _alone(Path(base_dir)):  # two processes that set up one database at once collide
            self._runs = _Runs.from_local(f"{base_dir}/history")
            self._events = _Events(f"{base_dir}/history")
            self._schedules = _Schedules.from_local(f"{base_dir}/schedules")

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where Dagster has the configuration from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What dagster.yaml may say."""
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "LocalStorage":
        """Makes the storage from dagster.yaml."""
        return cls(config_value.get("base_dir") or _home(), inst_data)

    @property
    def event_log_storage(self) -> "_Events":
        """Where events are."""
        return self._events

    @property
    def run_storage(self) -> "_Runs":
        """Where runs are."""
        return self._runs

    @property
    def schedule_storage(self) -> "_Schedules":
        """Where ticks of sensors and schedules are."""
        return self._schedules


class _Runs(SqliteRunStorage):
    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> "_Runs":
        return super().from_local(base_dir, inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with _engine(self._conn_string).begin() as connection:
            yield connection


class _Schedules(SqliteScheduleStorage):
    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with _engine(self._conn_string).begin() as connection:
            yield connection

    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> "_Schedules":
        made = SqliteScheduleStorage.from_local(base_dir, inst_data)
        return cls(made._conn_string, inst_data)


class _Events(ConsolidatedSqliteEventLogStorage):
    def __init__(self, base_dir: str) -> None:
        super().__init__(base_dir)
        self._init_db()  # a process that was killed may have left a file without tables
        self._watcher = SqlPollingEventWatcher(self)

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with _engine(self._conn_string).begin() as connection:
            yield connection

    def has_table(self, table_name: str) -> bool:
        with self._connect() as connection:
            return bool(connection.dialect.has_table(connection, table_name))

    # Dagster's own waits for the database's file to change, which it does not before its log is emptied.
    def watch(self, run_id: str, cursor: str | None, callback: Callable[..., Any]) -> None:
        self._watcher.watch_run(run_id, cursor, callback)

    def end_watch(self, run_id: str, handler: Callable[..., Any]) -> None:
        self._watcher.unwatch_run(run_id, handler)

    def dispose(self) -> None:
        self._watcher.close()


def _home() -> str:
    """`DAGSTER_HOME`; without it, a folder that the processes of one `dagster dev` share."""
    home = os.environ.get("DAGSTER_HOME") or os.environ.get(_TEMPORARY_HOME)
    if not home:
        home = os.environ[_TEMPORARY_HOME] = tempfile.mkdtemp(prefix="dagster_home_")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def _engine(database: str) -> Engine:
    return _engine_of(database, os.getpid())  # a connection must not be used on both sides of a fork


@cache
def _engine_of(database: str, _process: int) -> Engine:
    engine = create_engine(
        database,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
        max_overflow=-1,  # as many at once as there are threads, five of which stay
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        # With a write-ahead log, only a loss of power can lose a transaction then, and none is ever torn.
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".storage.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
