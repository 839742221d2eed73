"""A process that executes runs one after another, so that imports and the loaded model are paid for once.

`boring_assets.instance.launcher` starts it and talks to it over a socket pair, one line each way:

    launcher                          worker
    a run to execute, as JSON   ->
                                <-    TAKEN, or the end of the stream: it did not take the run
                                <-    DONE, or the end of the stream: the run failed or the process died

A worker ends when nothing came for its idle time, when its launcher is gone, after a run that did not
succeed, and instead of taking a run when the code that it has loaded is no longer what is on disk.
"""

import fcntl
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from boring_assets.monitoring.logs import set_up_process

TAKEN, DONE = b"taken\n", b"done\n"
_CANCEL_SECONDS = 1.0
# Dagster gives runs the variables of this file, and the definitions read them once.
_ENV_FILE = ".env"


def main() -> None:
    """Serves the launcher that is at the other end of an open socket.

    Arguments of the command: the socket's descriptor, the path of the lock file, the idle time in seconds.
    """
    descriptor, lock, idle_seconds = sys.argv[1:]
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    set_up_process()
    with Path(lock).open("wb") as held:
        # A record lock: unlike flock's, it is not shared with children, so it ends with this very process.
        fcntl.lockf(held, fcntl.LOCK_EX)
        try:
            _serve(connection, float(idle_seconds))
        finally:
            Path(lock).unlink(missing_ok=True)


def is_alive(lock: Path) -> bool:
    """Whether the worker of a lock file lives: the kernel ends its lock with it, also when it reboots.

    Args:
        lock: The worker's lock file.

    Returns:
        False where the file is missing too. Must not be asked by the worker itself.
    """
    try:
        with lock.open("r+b") as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):  # POSIX lets a lock that is held answer either
        return True
    return False


def _serve(connection: socket.socket, idle_seconds: float) -> None:
    loaded: dict[str, int] = {}
    execute: Callable[..., bool] | None = None
    with connection, connection.makefile("rb") as requests, ExitStack() as stack:
        while select.select([connection], [], [], idle_seconds)[0]:
            request = requests.readline()
            if not request or any(_changed(path) != was for path, was in loaded.items()):
                return
            connection.sendall(TAKEN)
            order = json.loads(request)
            execute = execute or stack.enter_context(_instance(order["instance_ref"]))
            if not execute(order["run_id"]):
                return
            try:
                connection.sendall(DONE)
            except (BrokenPipeError, ConnectionResetError):
                return  # the launcher's process has ended
            loaded = _code() | loaded


@contextmanager
def _instance(serialized_ref: str) -> Iterator[Callable[[str], bool]]:
    """Opens Dagster's storage, and gives what executes a run by its id; True where the run succeeded.

    A run is executed as by `dagster api execute_run`: events and failures go to the storage.
    """
    from dagster import DagsterInstance
    from dagster._cli.api import _execute_run_command_body
    from dagster._core.instance import InstanceRef
    from dagster._serdes import deserialize_value
    from dagster._utils.interrupts import capture_interrupts

    ref = deserialize_value(serialized_ref, InstanceRef)
    with DagsterInstance.from_ref(ref) as instance:

        def execute(run_id: str) -> bool:
            ended = threading.Event()
            with capture_interrupts():
                watch = threading.Thread(target=_watch, args=(ref, run_id, ended), daemon=True)
                watch.start()
                try:
                    return _execute_run_command_body(run_id, instance, lambda _: None, True) == 0
                finally:
                    ended.set()
                    watch.join()

        yield execute


def _watch(ref: Any, run_id: str, ended: threading.Event) -> None:
    """Interrupts this process's run once Dagster's storage says that it shall end, or has."""
    from dagster import DagsterInstance, DagsterRunStatus
    from dagster._utils import send_interrupt

    over = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED, DagsterRunStatus.FAILURE)
    if ended.wait(_CANCEL_SECONDS):
        return
    with DagsterInstance.from_ref(ref) as instance:
        while not ended.is_set():
            run = instance.get_run_by_id(run_id)
            if (run is None or run.status in over) and not ended.is_set():
                send_interrupt()
                return
            ended.wait(_CANCEL_SECONDS)


def _code() -> dict[str, int]:
    """When each file was last changed that this process has loaded."""
    files = [getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())]
    return {path: _changed(path) for path in [*files, _ENV_FILE] if isinstance(path, str)}


def _changed(path: str) -> int:
    """When a file was last changed, in ns; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - thousands of files before each run
    except OSError:
        return 0


if __name__ == "__main__":
    main()
