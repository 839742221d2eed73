"""Keeps Dagster's SQLite files open in this process.

Dagster opens a connection for each statement and closes it. When the last connection to a file in WAL mode
closes, SQLite copies the log into the file and waits for the disk, which takes most of the time of an event
(docs/performance.md). One more connection, open and idle, makes that rare. Commits are as durable as before.
"""

import atexit
import os
import sqlite3
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

_MOST_FILES = 16  # each run has its own file; the three shared files are used most
_lock = Lock()
_open: OrderedDict[str, sqlite3.Connection] = OrderedDict()
_homes: set[str] = set()


def keep_files_open(home: Path) -> None:
    """Keeps the SQLite files below a folder open once a connection to them is made.

    Args:
        home: The folder, `DAGSTER_HOME`. SQLite files elsewhere are not touched.
    """
    if not _homes:
        process = os.getpid()
        event.listen(Engine, "connect", lambda connection, record: _keep_open(connection, process))
        atexit.register(_close_all, process)
    _homes.add(f"{home.resolve()}{os.sep}")


def _keep_open(connection: Any, process: int) -> None:
    if not isinstance(connection, sqlite3.Connection) or os.getpid() != process:
        return
    path = connection.execute("PRAGMA database_list").fetchone()[2]  # absolute; empty for one in memory
    if not path.startswith(tuple(_homes)):
        return
    with _lock:
        if path in _open:
            _open.move_to_end(path)
        else:
            _open[path] = sqlite3.connect(path, check_same_thread=False)
        # A new file is not in WAL mode yet: a connection knows the mode since its last statement.
        _open[path].execute("PRAGMA schema_version").fetchone()
        while len(_open) > _MOST_FILES:
            _open.popitem(last=False)[1].close()


def _close_all(process: int) -> None:
    """Closes the connections at the end of the process, so that SQLite copies its logs back."""
    while _open and os.getpid() == process:
        _open.popitem()[1].close()
