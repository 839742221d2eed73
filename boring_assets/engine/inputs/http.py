"""HTTP connections with a deadline for the whole request, made to the address that was checked.

urllib3's time-outs apply to each wait: a server that sends one byte a second, or `100 Continue` for ever,
never exceeds them. And a name that was checked before may resolve to another address when it is connected to:
here the checked address is the one that is used.
"""

import ipaddress
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError
from urllib3.util.connection import create_connection

_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Resolving a name has no time limit; a thread that waits for it can be abandoned.
_names = ThreadPoolExecutor(32, "names")


class NotAllowed(Exception):
    """A URL is not allowed; the message says why."""


class _Clock(threading.local):
    """The deadline of this thread's fetch, by `time.monotonic`."""

    end = float("inf")


_clock = _Clock()


def set_deadline(end: float) -> None:
    """Sets the deadline, by `time.monotonic`, for everything that this thread receives from now on."""
    _clock.end = end


def _seconds_left() -> float:
    left = _clock.end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for this image is up")
    return left


class _TimedSocket(socket.socket):
    """A socket whose reads end at the deadline of their thread."""

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_seconds_left())
        return super().recv_into(*args)


class _TimedSSLSocket(ssl.SSLSocket):
    """The same with TLS."""

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_seconds_left())
        return super().recv_into(*args)


def _connect(connection: HTTPConnection, public: bool) -> socket.socket:
    """Resolves the name once, checks every address, and connects to the first that answers."""
    host = connection.host.strip("[]")
    try:
        wait = _names.submit(socket.getaddrinfo, host, connection.port, type=socket.SOCK_STREAM)
        answers = wait.result(_seconds_left())
    except (socket.gaierror, UnicodeError) as error:
        raise NewConnectionError(connection, f"{host} has no address: {error}") from error
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if public and not all(map(is_public, addresses)):
        raise NotAllowed(f"{host} is not a public host")
    last: OSError | None = None
    for address in addresses:
        try:
            plain = create_connection(
                (address, connection.port), _seconds_left(), socket_options=connection.socket_options
            )
        except TimeoutError:
            raise
        except OSError as error:
            last = error
        else:
            timed = _TimedSocket(plain.family, plain.type, plain.proto, plain.detach())
            timed.settimeout(_seconds_left())
            return timed
    raise NewConnectionError(connection, f"{host} cannot be reached: {last}") from last


def make_pool(connections: int, *, public: bool) -> urllib3.PoolManager:
    """Returns a pool of connections that end at `set_deadline`, without redirects and retries.

    With `public`, NotAllowed is raised for every address that is not on the public internet.
    """

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, public)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, public)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    context = ssl.create_default_context()
    context.sslsocket_class = _TimedSSLSocket
    # urllib3's own retries have no total time limit, and wait as long as the server says.
    pool = urllib3.PoolManager(num_pools=64, maxsize=connections, retries=False, ssl_context=context)
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pool


def is_public(address: str) -> bool:
    """Returns whether an IPv4 or IPv6 address, with or without a zone, is on the public internet.

    Loopback, private, link-local, shared, multicast, reserved and documentation addresses are not. Of an IPv6
    address that stands for an IPv4 address (mapped, NAT64, 6to4), that one decides.
    """
    ip: IPv4Address | IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip.sixtofour
        if inner:
            return is_public(str(inner))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast
