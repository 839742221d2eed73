"""A process that executes runs one after another, so imports and the model are loaded once.

`Worker` is the launcher's side, `main` is the process. They talk over a socket pair, one line each way:

    launcher                          worker
    a run to execute, as JSON   ->
                                <-    ACCEPTED, or the stream ends: the run was not accepted
                                <-    DONE, or the stream ends: the run failed or the process died

A worker ends after its idle time, when its launcher is gone, and after a run that did not succeed. It ends
instead of accepting a run when the code that it has loaded has changed on disk.
"""

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boring_assets.monitoring.logs import set_up_process

if TYPE_CHECKING:
    from dagster._core.origin import RepositoryPythonOrigin

ACCEPTED, DONE = b"accepted\n", b"done\n"
_REPLY_SECONDS = 120.0
_CANCEL_SECONDS = 1.0
# Dagster sets the variables of this file for runs; the definitions read them once.
_ENV_FILE = ".env"


class Worker:
    """The launcher's side of one worker process.

    Attributes:
        origin: The code whose runs it executes.
        id: Its process id and a unique name.
        lock: The file that it holds a lock on while it lives.
    """

    def __init__(self, origin: "RepositoryPythonOrigin", folder: Path, idle_seconds: int) -> None:
        """Starts the process.

        Args:
            origin: The code whose runs it executes.
            folder: Where its lock goes; created where missing.
            idle_seconds: How long it waits for its next run.
        """
        self.origin = origin
        folder.mkdir(mode=0o700, exist_ok=True)
        name = uuid.uuid4().hex[:12]
        self.lock = folder / f"{name}.lock"
        self._socket, child_socket = socket.socketpair()
        self._socket.settimeout(_REPLY_SECONDS)
        with child_socket:
            descriptor = child_socket.fileno()
            module = [sys.executable, "-m", "boring_assets.instance.worker"]
            self._process = subprocess.Popen(
                [*module, str(descriptor), str(self.lock), str(idle_seconds)],
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,  # its run continues when the daemon is interrupted or restarted
            )
        self.id = f"{self._process.pid}-{name}"

    def send(self, request: bytes) -> bool:
        """Sends a run; False where the worker does not accept it, and ends."""
        try:
            self._socket.sendall(request)
            if self._socket.recv(len(ACCEPTED), socket.MSG_WAITALL) == ACCEPTED:
                return True
        except OSError:
            self._process.kill()  # it must not start the run later
        self.stop()
        return False

    def wait(self) -> bool:
        """Waits until the accepted run has ended; False where it failed or the process died."""
        self._socket.settimeout(None)
        try:
            done = self._socket.recv(len(DONE), socket.MSG_WAITALL) == DONE
        except OSError:
            return False
        self._socket.settimeout(_REPLY_SECONDS)
        return done

    def stop(self) -> int:
        """Ends an idle worker; returns the process's exit status, negative for a signal."""
        self._socket.close()
        try:
            status = self._process.wait(_REPLY_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self.lock.unlink(missing_ok=True)
        return status


def main() -> None:
    """Executes the runs that the launcher sends.

    Arguments of the command: descriptor of the open socket, path of the lock file, idle time in seconds.
    """
    descriptor, lock, idle_seconds = sys.argv[1:]
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    set_up_process()
    with Path(lock).open("wb") as held:
        # A record lock: unlike flock's, children do not inherit it, so it ends with this process.
        fcntl.lockf(held, fcntl.LOCK_EX)
        try:
            _serve(connection, float(idle_seconds))
        finally:
            Path(lock).unlink(missing_ok=True)


def _serve(connection: socket.socket, idle_seconds: float) -> None:
    loaded: dict[str, int] = {}
    opened: tuple[Any, Callable[[str], bool]] | None = None
    with connection, connection.makefile("rb") as requests, ExitStack() as stack:
        while select.select([connection], [], [], idle_seconds)[0]:
            line = requests.readline()
            if not line or any(_changed_at(path) != before for path, before in loaded.items()):
                return
            request = json.loads(line)
            if opened and not _knows(opened[0], request["run_id"]):
                return
            connection.sendall(ACCEPTED)
            opened = opened or stack.enter_context(_executor(request["instance_ref"]))
            if not opened[1](request["run_id"]):
                return
            try:
                connection.sendall(DONE)
            except (BrokenPipeError, ConnectionResetError):
                return  # the launcher's process has ended
            loaded = _loaded_files() | loaded


@contextmanager
def _executor(serialized_ref: str) -> Iterator[tuple[Any, Callable[[str], bool]]]:
    """Opens the instance; yields it, and a function that executes a run by its id.

    The function returns whether the run succeeded.

    It does what `dagster api execute_run` does, in this process: that command would load the model again.
    """
    from dagster import DagsterInstance
    from dagster._cli.api import _execute_run_command_body
    from dagster._core.instance import InstanceRef
    from dagster._serdes import deserialize_value
    from dagster._utils.interrupts import capture_interrupts

    from boring_assets.instance.homes import keep_connections_open

    ref = deserialize_value(serialized_ref, InstanceRef)
    with DagsterInstance.from_ref(ref) as instance:
        keep_connections_open(instance)

        def execute(run_id: str) -> bool:
            ended = threading.Event()
            with capture_interrupts():
                watch = threading.Thread(
                    target=_interrupt_if_canceled, args=(ref, run_id, ended), daemon=True
                )
                watch.start()
                try:
                    return _execute_run_command_body(run_id, instance, lambda _: None, True) == 0
                finally:
                    ended.set()
                    watch.join()

        yield instance, execute


def _knows(instance: Any, run_id: str) -> bool:
    """Returns whether the definitions that this process has loaded hold the job and the assets of a run.

    A split dataset gets new parts, with new assets, while the code on disk stays the same.
    """
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    run = instance.get_run_by_id(run_id)
    if run is None or run.job_code_origin is None:
        return True  # executing it says what is wrong
    pointer = run.job_code_origin.repository_origin.code_pointer
    repository = ReconstructableRepository(pointer).get_definition()
    assets = repository.asset_graph.get_all_asset_keys()
    return repository.has_job(run.job_name) and set(run.asset_selection or ()) <= set(assets)


def _interrupt_if_canceled(ref: Any, run_id: str, ended: threading.Event) -> None:
    """Interrupts this process's run when it is canceled, or has been marked as ended by another process."""
    from dagster import DagsterInstance, DagsterRunStatus
    from dagster._utils import send_interrupt

    stop = (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED, DagsterRunStatus.FAILURE)
    if ended.wait(_CANCEL_SECONDS):
        return
    with DagsterInstance.from_ref(ref) as instance:
        while not ended.is_set():
            run = instance.get_run_by_id(run_id)
            if (run is None or run.status in stop) and not ended.is_set():
                send_interrupt()
                return
            ended.wait(_CANCEL_SECONDS)


def _loaded_files() -> dict[str, int]:
    """Returns when each loaded source file was last changed."""
    files = [getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())]
    return {path: _changed_at(path) for path in [*files, _ENV_FILE] if isinstance(path, str)}


def _changed_at(path: str) -> int:
    """Returns when a file was last changed, in ns; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - thousands of files before each run
    except OSError:
        return 0


if __name__ == "__main__":
    main()
