"""Fetches images by URL, if they are allowed, with limits on size and time.

URLs come from the data, so they are not trusted. A URL is fetched if it is below the dataset's root or below
a prefix that the user allowed. The same holds for redirects.
"""

import os
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import fsspec
import urllib3
from fsspec import AbstractFileSystem
from urllib3.util import Url, parse_url

from boring_assets.engine.inputs.http import NotAllowed, make_pool, set_deadline
from boring_assets.engine.samples import Failure, Reason, Shard

_MAX_REDIRECTS = 5
_PIECE = 1 << 16
_BUSY = frozenset([429, 500, 502, 503, 504])
_PAUSES = (0.5, 1.0)


@dataclass(frozen=True)
class Fetcher:
    """Fetches image URLs.

    Attributes:
        allowed_prefixes: URI prefixes that URLs may lie below, besides the dataset's own root. A prefix
            of only `https://` or `http://` allows every public host, but no private address.
        max_bytes: Most bytes of an image.
        timeout: Most seconds for one image, redirects included.
        parallel: Most connections that are kept open.
        open_filesystem: Opens the filesystem of a URL's scheme.
    """

    allowed_prefixes: tuple[str, ...] = ()
    max_bytes: int = 64 * 2**20
    timeout: float = 30.0
    parallel: int = 32
    open_filesystem: Callable[[str], AbstractFileSystem] = fsspec.filesystem
    _filesystems: dict[str, AbstractFileSystem] = field(default_factory=dict, repr=False)

    @cached_property
    def _named(self) -> urllib3.PoolManager:
        """Connections to hosts that a prefix names; private addresses are allowed."""
        return make_pool(self.parallel, public=False)

    @cached_property
    def _public(self) -> urllib3.PoolManager:
        """Connections to hosts that no prefix names; only public addresses are allowed."""
        return make_pool(self.parallel, public=True)

    def fetch(self, url: str, shard: Shard) -> bytes | Failure:
        """Fetches one image.

        Args:
            url: An `http(s)://` URL, another fsspec URI, or a path (relative to the dataset's root).
            shard: The shard that names it.
        """
        try:
            parts = urlsplit(url)
            data = self._get_http(url) if parts.scheme in ("http", "https") else self._get_file(url, shard)
        except NotAllowed as refusal:
            return Failure(Reason.NOT_ALLOWED, str(refusal))
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            return Failure(Reason.FETCH_ERROR, f"{type(error).__name__}: {error}"[:500])
        if isinstance(data, bytes) and len(data) > self.max_bytes:
            return Failure(Reason.TOO_LARGE, f"more than {self.max_bytes} bytes")
        return data

    def _get_http(self, url: str) -> bytes | Failure:
        deadline = time.monotonic() + self.timeout
        set_deadline(deadline)
        for _ in range(_MAX_REDIRECTS + 1):
            pool = self._pool_for(url)
            if time.monotonic() >= deadline:
                break
            answer = self._ask(pool, url, deadline)
            try:
                if location := answer.get_redirect_location():
                    url = urljoin(url, location)
                    continue
                if answer.status != 200:
                    return Failure(Reason.FETCH_ERROR, f"HTTP status {answer.status}")
                return self._read(answer, deadline)
            finally:
                answer.close()  # the rest of it is not needed
        else:
            return Failure(Reason.FETCH_ERROR, f"more than {_MAX_REDIRECTS} redirects")
        return Failure(Reason.FETCH_ERROR, f"not answered within {self.timeout:g} s")

    def _ask(self, pool: urllib3.PoolManager, url: str, deadline: float) -> urllib3.BaseHTTPResponse:
        """Requests a URL; if the server is busy or hangs up, again after each pause, until the deadline."""
        for pause in (*_PAUSES, None):
            timeout = urllib3.Timeout(total=max(0.01, deadline - time.monotonic()))
            try:
                answer = pool.request("GET", url, preload_content=False, timeout=timeout, redirect=False)
                if answer.status not in _BUSY or pause is None or time.monotonic() + pause >= deadline:
                    return answer
                answer.close()
            except (urllib3.exceptions.ProtocolError, urllib3.exceptions.TimeoutError):
                if pause is None or time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _read(self, answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes | Failure:
        pieces, size = [], 0
        # `read1` returns what has arrived; `stream` would wait for a whole piece from a slow server.
        while piece := answer.read1(_PIECE, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > self.max_bytes:
                break
            if time.monotonic() > deadline:
                return Failure(Reason.FETCH_ERROR, f"not complete within {self.timeout:g} s")
        return b"".join(pieces)

    def _pool_for(self, url: str) -> urllib3.PoolManager:
        """Returns the pool for a URL, which is parsed as the connection will parse it."""
        _check_syntax(url)
        try:
            parts = parse_url(url)
        except urllib3.exceptions.LocationParseError as error:
            raise NotAllowed("a URL whose host cannot be read") from error
        for prefix in self.allowed_prefixes:
            if prefix.lower() == f"{parts.scheme}://":
                return self._public
            allowed = parse_url(prefix) if prefix.lower().startswith(("http://", "https://")) else None
            if (
                allowed
                and _origin(allowed) == _origin(parts)
                and is_below(parts.path or "/", allowed.path or "")
            ):
                return self._named
        raise NotAllowed(f"{parts.scheme}://{parts.host} is not below the input or an allowed URL prefix")

    def _get_file(self, url: str, shard: Shard) -> bytes:
        fs, path = self._locate(url, shard)
        try:
            return fs.cat_file(path, start=0, end=self.max_bytes + 1)
        # Each filesystem has its own errors, e.g. botocore's; one URL must not stop a run.
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def _locate(self, url: str, shard: Shard) -> tuple[AbstractFileSystem, str]:
        """Filesystem and path of a URL that is allowed; the dataset's own root comes first."""
        _check_syntax(url)
        scheme = urlsplit(url).scheme
        if not scheme or scheme in _protocols(shard.fs):
            own = shard.fs._strip_protocol(url) if scheme else posixpath.join(shard.root, url)
            path = real_path(shard.fs, own)
            if is_below(path, real_path(shard.fs, shard.root)):
                return shard.fs, path
        for prefix in self.allowed_prefixes:
            if urlsplit(prefix).scheme in ("http", "https"):
                continue
            fs, root = self._filesystem(prefix)
            if scheme in _protocols(fs) or (not scheme and "file" in _protocols(fs)):
                path = real_path(fs, fs._strip_protocol(url))
                if is_below(path, real_path(fs, root)):
                    return fs, path
        raise NotAllowed(f"{url[:200]} is not below the input or an allowed URL prefix")

    def _filesystem(self, prefix: str) -> tuple[AbstractFileSystem, str]:
        scheme = urlsplit(prefix).scheme or "file"
        if scheme not in self._filesystems:
            self._filesystems[scheme] = self.open_filesystem(scheme)
        fs = self._filesystems[scheme]
        return fs, fs._strip_protocol(prefix)


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    protocol: Any = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def real_path(fs: AbstractFileSystem, path: str) -> str:
    """Returns the path with links resolved, if the filesystem has links."""
    return os.path.realpath(path) if "file" in _protocols(fs) else path


def _check_syntax(url: str) -> None:
    """Refuses URLs that parsers read in different ways."""
    parts = urlsplit(url)
    if any(ord(c) < 32 or c == "\\" for c in url) or parts.username is not None:
        raise NotAllowed("a URL with control characters, backslashes or a user name")
    # Only in HTTP URLs do `?` and `#` end the path.
    path = parts.path if parts.scheme in ("http", "https") else url
    if ".." in unquote(unquote(path)).replace("\\", "/").split("/"):
        raise NotAllowed("a URL that climbs with `..`")


def is_below(path: str, root: str) -> bool:
    """Returns whether a path is the root or below it, by the names only."""
    root = root.rstrip("/")
    return path == root or path.startswith(root + "/")


def _origin(url: Url) -> tuple[str | None, str | None, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme or "")
    return url.scheme, url.host, url.port or default
