"""A proxy before an S3 server that misbehaves by chance, as storage does on a bad day.

Requests are passed on byte for byte with their `Host` header, which AWS's signature covers. Faults are drawn
from a seeded generator, each kind with a probability of its own.
"""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KINDS = ("500", "503", "reset before", "reset after", "truncated", "stall")
"""Two errors that the server answers; the connection reset before and after the request reaches the server; a
body that ends early; and no answer for longer than the client waits."""

_CODES = {"500": "InternalError", "503": "SlowDown", "403": "ExpiredToken"}


class FaultyProxy:
    """A proxy on a free local port, used as a context manager.

    Attributes:
        endpoint: Its URL.
        injected: How many faults of each kind there were.
        requests: How many requests came.
        rates: Probability of each kind; may be changed at any time.
        expired: Whether every request is answered as if its credentials had run out.
    """

    def __init__(
        self, endpoint: str, rates: Mapping[str, float], *, seed: int = 0, stall_seconds: float = 20
    ) -> None:
        self._target = endpoint.removeprefix("http://")
        self.rates, self.stall_seconds, self.expired = dict(rates), stall_seconds, False
        self.injected: Counter[str] = Counter()
        self.requests = 0
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> str | None:
        """The next request's fault, if any."""
        with self._lock:
            self.requests += 1
            if self.expired:
                self.injected["403"] += 1
                return "403"
            at = self._random.random()
            for kind, rate in self.rates.items():
                at -= rate
                if at < 0:
                    self.injected[kind] += 1
                    return kind
            return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy, target = self, self._target

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                with suppress(ConnectionError):  # the client has given up
                    _serve(self, proxy, target)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _serve(client: Any, proxy: FaultyProxy, target: str) -> None:
    fault = proxy.draw()
    body = client.rfile.read(int(client.headers.get("Content-Length") or 0))
    if fault in _CODES:
        return _refuse(client, fault)
    if fault == "stall":
        time.sleep(proxy.stall_seconds)
        return _reset(client)
    if fault == "reset before":
        return _reset(client)
    server = http.client.HTTPConnection(target, timeout=120)
    try:
        server.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
        for name, value in client.headers.items():
            if name.lower() not in ("connection", "expect"):
                server.putheader(name, value)
        server.endheaders(body or None)
        answer = server.getresponse()
        content = answer.read()
    finally:
        server.close()
    if fault == "reset after":
        return _reset(client)
    client.send_response_only(answer.status, answer.reason)
    length = answer.getheader("Content-Length") if client.command == "HEAD" else str(len(content))
    for name, value in answer.getheaders():
        if name.lower() not in ("content-length", "connection", "transfer-encoding"):
            client.send_header(name, value)
    if length is not None and answer.status not in (204, 304):
        client.send_header("Content-Length", length)
    client.end_headers()
    if fault == "truncated" and content:
        client.wfile.write(content[: len(content) // 2])
        return _reset(client, gently=True)
    client.wfile.write(content)
    return None


def _refuse(client: Any, status: str) -> None:
    text = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>"
    content = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    client.send_response_only(int(status))
    client.send_header("Content-Type", "application/xml")
    client.send_header("Content-Length", str(len(content)))
    client.end_headers()
    if client.command != "HEAD":
        client.wfile.write(content)


def _reset(client: Any, *, gently: bool = False) -> None:
    """Ends the connection: by an RST, or gently by a FIN in the middle of a body."""
    client.close_connection = True
    if not gently:
        client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.connection.close()
    else:
        client.wfile.flush()
        client.connection.shutdown(socket.SHUT_RDWR)
