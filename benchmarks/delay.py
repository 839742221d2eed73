"""A proxy that passes TCP on and holds each answer back for a while, as a distant server does.

python -m benchmarks.delay 127.0.0.1:8333 0.03      # prints its own port

It runs in a process of its own, and the kernel moves the bytes, so it takes little from what is measured.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE = 2**20


@contextmanager
def delayed(target: str, seconds: float) -> Iterator[str]:
    """Runs the proxy; yields its address.

    Args:
        target: Host and port of the server.
        seconds: How long each answer is held back.
    """
    command = [sys.executable, "-m", "benchmarks.delay", target, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def _pass_on(source: socket.socket, sink: socket.socket, asked: threading.Event, delay: float | None) -> None:
    """Passes questions on or, with a delay, answers."""
    out, into = os.pipe()
    with suppress(OSError):
        while count := os.splice(source.fileno(), into, _PIECE):
            if delay is None:
                asked.set()
            elif asked.is_set():  # the first piece of an answer
                asked.clear()
                time.sleep(delay)
            while count:
                count -= os.splice(out, sink.fileno(), count)
    for end in (out, into):
        os.close(end)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _serve(target: str, seconds: float) -> None:
    host, _, port = target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            distant = socket.create_connection((host, int(port)))
            for one in (client, distant):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = threading.Event()
            for way in ((client, distant, asked, None), (distant, client, asked, seconds)):
                threading.Thread(target=_pass_on, args=way, daemon=True).start()


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
