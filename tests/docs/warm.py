"""Runs the programs of the documents in processes that have the heavy imports behind them.

Each `boring-assets` would spend seconds on importing torch and Dagster. A server has them imported and forks
for each call: the child is the program, with the caller's arguments, environment, folder and streams. Only
libraries are imported beforehand, nothing of this project, so that settings are read by each program anew.

A program that serves until it is stopped gets a free port, is asked until it answers, and is stopped.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.seaweed import free_ports
from tests.waiting import HANG_SECONDS

_LIBRARIES = (
    "dagster._cli",
    "open_clip",
    "polars",
    "pyarrow.dataset",
    "pydantic_settings",
    "rich.console",
    "s3fs",
)
# Programs that serve, with the option for their port and a path that answers once all is loaded.
_SERVING = {
    ("boring-assets", "serve"): ("--port", "/"),
    ("boring-assets", "map"): ("--port", "/"),
    ("dagster", "dev"): ("-p", "/server_info"),
}

CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(call)
    sys.exit(server.recv(1)[0])
"""


def main(address: str) -> None:
    """Serves calls on a Unix socket, one process each."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _watch(caller)
            caller.close()


def _watch(caller: socket.socket) -> None:
    """Starts the program, and sends its exit code to the caller."""
    size, streams, _, _ = socket.recv_fds(caller, 4, 3)
    call = b""
    while len(call) < int.from_bytes(size, "big"):
        call += caller.recv(2**16)
    argv, folder, environment = json.loads(call)
    serving = _SERVING.get((Path(argv[0]).name, *argv[1:2]))
    url = ""
    if serving:
        (port,) = free_ports(1)
        argv += [serving[0], str(port)]
        url = f"http://127.0.0.1:{port}{serving[1]}"
    child = os.fork()
    if child == 0:
        os.setsid()
        # Both are ignored where the tests run in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        caller.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv
        _run(Path(argv[0]).name)
    else:
        code = _wait(child, url)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{used.ru_utime + used.ru_stime:5.1f} s of CPU: {' '.join(argv)}", file=sys.stderr, flush=True)
        caller.sendall(bytes([code]))
        os._exit(0)


def _run(program: str) -> None:
    """Is the program from here on; returning ends the process as it ends any other."""
    if program == "boring-assets":
        from boring_assets.cli import main as command
    elif program == "dagster":
        from dagster._cli import main as command
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    command()
    sys.exit()


def _wait(child: int, url: str) -> int:
    """The exit code of a program; one that serves is stopped as soon as it answers."""
    if url:
        end = time.monotonic() + HANG_SECONDS
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            with (
                suppress(urllib.error.URLError, ConnectionError, TimeoutError),
                urllib.request.urlopen(url, timeout=HANG_SECONDS),
            ):
                os.killpg(child, signal.SIGTERM)
                os.waitpid(child, 0)
                with suppress(ProcessLookupError):  # `dagster dev` may have started a code server once more
                    os.killpg(child, signal.SIGKILL)
                return 0
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.2)
        return 1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


if __name__ == "__main__":
    main(sys.argv[1])
