"""Starts `boring-assets` many times without its imports, which take longer than the run itself.

A starter process has imported the program, and forks for each start. The fork runs the program's `main` in
its own session, with its own environment and Dagster home.
"""

import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_IMPORTED = (
    "torch", "torchvision", "open_clip", "s3fs", "polars", "pyarrow.dataset", "simplejpeg",
    "safetensors.torch", "boring_assets.cli", "boring_assets.commands.embedding",
    "boring_assets.engine.model.load",
)  # fmt: skip


class Run:
    """A started program, with the interface of `Popen`."""

    def __init__(self, starter: "subprocess.Popen[bytes]", pid: int) -> None:
        self._starter, self.pid = starter, pid
        self.returncode: int | None = None

    def poll(self, seconds: float = 0) -> int | None:
        """Returns the exit status, negative for a signal; None while it runs."""
        out = self._starter.stdout
        assert out is not None
        if self.returncode is None and select.select([out], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(json.loads(out.readline()))
        return self.returncode

    def wait(self, seconds: float = 1800) -> int:
        """Waits for the end, and returns the exit status."""
        end = time.monotonic() + seconds
        while (status := self.poll(1)) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"The process {self.pid} is still running after {seconds} s.")
        return status


class Starter:
    """Forks one run at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.starter"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, arguments: Sequence[str], env: Mapping[str, str], log: str) -> Run:
        """Starts `boring-assets` with some arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": list(arguments), "env": dict(env), "log": log}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return Run(self._process, int(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the starter."""
        self._process.communicate()


def main() -> None:
    """Runs in the starter process: reads requests from stdin, writes process ids and statuses to stdout."""
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run_program(request)
        _write(pid)
        _write(os.waitpid(pid, 0)[1])


def _run_program(request: dict[str, Any]) -> NoReturn:
    """Runs the program in this process."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(request["env"])
    from boring_assets.cli import main as program

    program(request["arguments"])
    raise AssertionError("click ends the process")


def _write(number: int) -> None:
    sys.stdout.buffer.write(f"{number}\n".encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
