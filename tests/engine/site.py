"""A real HTTP server whose paths name what it answers: images, damage, redirects, and never an end."""

import gzip
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from boring_assets.engine.samples import Failure, Reason
from tests.engine.kinds import jpeg

IMAGE = jpeg()


class Site(BaseHTTPRequestHandler):
    """What a path answers is in its name."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site: Server = self.server  # type: ignore[assignment]
        site.asked.append(self.path)
        name, _, rest = self.path[1:].removeprefix("ok/").partition("/")
        try:
            getattr(self, f"_{name.partition('.')[0]}")(rest)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _image(self, _: str) -> None:
        self._send(200, IMAGE)

    def _chunked(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(IMAGE), 1000):
            piece = IMAGE[start : start + 1000]
            self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _gzip(self, _: str) -> None:
        self._send(200, gzip.compress(IMAGE), Content_Encoding="gzip")

    def _bomb(self, _: str) -> None:
        self._send(200, gzip.compress(bytes(30_000_000)), Content_Encoding="gzip")

    def _status(self, rest: str) -> None:
        self._send(int(rest))

    def _to(self, rest: str) -> None:
        self._send(302, Location=rest)

    def _loop(self, _: str) -> None:
        self._send(301, Location="/ok/loop")

    def _flaky(self, rest: str) -> None:
        site: Server = self.server  # type: ignore[assignment]
        first = site.asked.count(self.path) < 3
        self._send(int(rest) if first else 200, b"" if first else IMAGE)

    def _busy(self, _: str) -> None:
        self._send(503, Retry_After="3600")

    def _endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def _short(self, _: str) -> None:
        self._send(200, IMAGE[:100], Content_Length="5000")
        self.close_connection = True

    def _silent(self, _: str) -> None:
        self._wait()

    def _drip(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(300):
            self.wfile.write(b".")
            self.wfile.flush()
            time.sleep(0.1)

    def _slow_header(self, _: str) -> None:
        self._trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nX-Long: " + b"x" * 1000)

    def _slow_headers(self, _: str) -> None:
        self._trickle(b"HTTP/1.1 200 OK\r\n" + b"X-Many: x\r\n" * 90)

    def _continue(self, _: str) -> None:
        for _ in range(300):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
            time.sleep(0.1)

    def _trickle(self, answer: bytes) -> None:
        for letter in answer[:300]:
            self.wfile.write(bytes([letter]))
            self.wfile.flush()
            time.sleep(0.1)

    def _nested(self, _: str) -> None:
        self._send(200, gzip.compress(gzip.compress(bytes(500_000_000))), Content_Encoding="gzip, gzip")

    def _wait(self) -> None:
        site: Server = self.server  # type: ignore[assignment]
        site.closing.wait(30)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.scheme = "http"
        self.asked: list[str] = []
        self.closing = threading.Event()

    @property
    def origin(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"


@contextmanager
def running(certificate: Path | None = None) -> Iterator[Server]:
    """A server in a thread.

    Args:
        certificate: A PEM file with a key and its certificate; with it, the server speaks TLS.
    """
    with Server() as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.scheme = "https"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def reason(answer: bytes | Failure, detail: str = "") -> Reason:
    assert isinstance(answer, Failure)
    assert answer.detail
    assert detail in answer.detail
    return answer.reason
