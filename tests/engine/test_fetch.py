"""Fetching by URL from a real HTTP server, and every way in which a URL must not lead astray."""

import gzip
import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from boring_assets.engine.fetch import Fetcher
from boring_assets.engine.samples import Failure, Reason, Shard
from tests.engine.kinds import jpeg, shard_at

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

    def _wait(self) -> None:
        site: Server = self.server  # type: ignore[assignment]
        site.closing.wait(30)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Site)
        self.asked: list[str] = []
        self.closing = threading.Event()
        self.origin = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """A shard in `set/`, with an image beside it and a secret outside of its root."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set-2").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "set-2" / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return shard_at(tmp_path / "set" / "00000.parquet")


def reason(answer: bytes | Failure, detail: str = "") -> Reason:
    assert isinstance(answer, Failure)
    assert answer.detail
    assert detail in answer.detail
    return answer.reason


@pytest.mark.parametrize(
    "path", ["image.jpg", "chunked", "gzip", "to//ok/image.jpg", "flaky/500", "flaky/429"]
)
def test_an_allowed_url_is_fetched(server: Server, shard: Shard, path: str) -> None:
    fetcher = Fetcher((f"{server.origin}/ok",))
    assert fetcher.fetch(f"{server.origin}/ok/{path}", shard) == IMAGE
    assert fetcher.fetch(f"{server.origin}/ok/{path}", shard) == IMAGE


@pytest.mark.parametrize(
    ("path", "expected", "detail"),
    [
        ("status/404", Reason.FETCH_ERROR, "HTTP status 404"),
        ("status/500", Reason.FETCH_ERROR, "HTTP status 500"),
        ("status/204", Reason.FETCH_ERROR, "HTTP status 204"),
        ("loop", Reason.FETCH_ERROR, "redirects"),
        ("short", Reason.FETCH_ERROR, ""),
        ("endless", Reason.TOO_LARGE, "1000000 bytes"),
        ("bomb", Reason.TOO_LARGE, "1000000 bytes"),
        ("to//elsewhere/image.jpg", Reason.NOT_ALLOWED, "allowed URL prefix"),
        ("to/file:///etc/passwd", Reason.NOT_ALLOWED, "allowed URL prefix"),
        ("to/http://127.0.0.1:1/ok/x.jpg", Reason.NOT_ALLOWED, "allowed URL prefix"),
        ("to/%2e%2e/secret", Reason.NOT_ALLOWED, "climbs"),
    ],
)
def test_an_answer_that_is_no_image_says_why(
    server: Server, shard: Shard, path: str, expected: Reason, detail: str
) -> None:
    fetcher = Fetcher((f"{server.origin}/ok/",), max_bytes=1_000_000, timeout=20)
    assert reason(fetcher.fetch(f"{server.origin}/ok/{path}", shard), detail) is expected
    assert not [asked for asked in server.asked if not asked.startswith("/ok/")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ["silent", "drip", "busy"])
def test_one_image_takes_no_more_than_the_time_in_all(server: Server, shard: Shard, path: str) -> None:
    """A server that says nothing, or little by little, or asks for patience of an hour, is left alone."""
    fetcher = Fetcher((server.origin,), timeout=2)
    before = time.monotonic()
    assert reason(fetcher.fetch(f"{server.origin}/ok/{path}", shard)) is Reason.FETCH_ERROR
    assert time.monotonic() - before < 4  # the time-out is a promise, not a speed


def test_nothing_listens(shard: Shard) -> None:
    answer = Fetcher(("http://127.0.0.1:9",), timeout=5).fetch("http://127.0.0.1:9/a.jpg", shard)
    assert reason(answer) is Reason.FETCH_ERROR


def test_a_url_is_not_allowed_by_default(server: Server, shard: Shard) -> None:
    assert reason(Fetcher().fetch(f"{server.origin}/ok/image.jpg", shard)) is Reason.NOT_ALLOWED
    assert server.asked == []


TRICKS = [
    "{origin}/okay/image.jpg",
    "{origin}/image.jpg",
    "{origin}/ok/../image.jpg",
    "{origin}/ok/%2e%2e/image.jpg",
    "{origin}/ok/%252e%252e/image.jpg",
    "{origin}/ok/..%2fimage.jpg",
    "{origin}/ok/..\\image.jpg",
    "{origin}/ok\\..\\image.jpg",
    "{origin}/ok/%5c..%5cimage.jpg",
    "{origin}/ok/image.jpg\r\nHost: evil",
    "{origin}/ok/\timage.jpg",
    "http://user:password@127.0.0.1:{port}/ok/image.jpg",
    "{origin}@evil.test/ok/image.jpg",
    "http://127.0.0.1:{port}.evil.test/ok/image.jpg",
    "http://127.0.0.1.evil.test:{port}/ok/image.jpg",
    "http://evil.test#@127.0.0.1:{port}/ok/image.jpg",
    "http://evil.test\\@127.0.0.1:{port}/ok/image.jpg",
    "http://127.1:{port}/ok/image.jpg",
    "http://localhost:{port}/ok/image.jpg",
    "https://127.0.0.1:{port}/ok/image.jpg",
    "ftp://127.0.0.1:{port}/ok/image.jpg",
    "//127.0.0.1:{port}/ok/image.jpg",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "FILE:///etc/passwd",
    "local:///etc/passwd",
    "/etc/passwd",
    "../secret.jpg",
    "a/../../secret.jpg",
    "..%2fsecret.jpg",
    "%2e%2e/secret.jpg",
    "..\\secret.jpg",
    "a#/../../secret.jpg",
    "a?/../../secret.jpg",
    "{parent}/secret.jpg",
    "{parent}/set-2/secret.jpg",
    "{parent}/set/../secret.jpg",
    "file://{parent}/secret.jpg",
    "link.jpg",
    "folder/secret.jpg",
    "file://{parent}/set/link.jpg",
    "s3://other-bucket/a.jpg",
    "simplecache::file://{parent}/secret.jpg",
    "memory://secret.jpg",
    "data:image/png;base64,AAAA",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_url_cannot_lead_out_of_what_is_allowed(server: Server, shard: Shard, trick: str) -> None:
    parent = Path(shard.root).parent
    Path(shard.root, "link.jpg").symlink_to(parent / "secret.jpg")
    Path(shard.root, "folder").symlink_to(parent)
    url = trick.format(origin=server.origin, port=server.server_port, parent=parent)
    for fetcher in (
        Fetcher((f"{server.origin}/ok/", "s3://bucket/images/")),
        Fetcher((f"{server.origin}/ok",)),
    ):
        assert reason(fetcher.fetch(url, shard)) is Reason.NOT_ALLOWED
    assert server.asked == []


@pytest.mark.parametrize(
    "url", ["a#/../../x.jpg", "a?/../../x.jpg", "memory://set/a#/../../x", "set/x", "/x"]
)
def test_paths_of_a_remote_root_do_not_climb_either(url: str) -> None:
    """Some servers resolve `..` themselves, wherever in the name it stands."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/x.jpg", b"secret")
    shard = shard_at("/set/00000.parquet", fs=fs)
    answer = Fetcher().fetch(url, shard)
    assert reason(answer) is (Reason.FETCH_ERROR if url == "set/x" else Reason.NOT_ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        "s3://images/a.jpg",
        "s3://bucket-2/images/a.jpg",
        "s3://bucket/images-2/a.jpg",
        "s3://bucket/a.jpg",
        "s3://bucket/images/../a.jpg",
        "gs://bucket/images/a.jpg",
    ],
)
def test_another_bucket_or_prefix_is_not_allowed(shard: Shard, url: str) -> None:
    assert reason(Fetcher(("s3://bucket/images",)).fetch(url, shard)) is Reason.NOT_ALLOWED


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "[fe80::1]",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "127。0。0。1",
    ],
)
def test_a_bare_scheme_allows_public_hosts_alone(server: Server, shard: Shard, host: str) -> None:
    answer = Fetcher(("http://",)).fetch(f"http://{host}:{server.server_port}/ok/image.jpg", shard)
    assert reason(answer, "not a public host") is Reason.NOT_ALLOWED
    assert server.asked == []


def test_images_below_the_root_are_read_by_path_and_by_uri(shard: Shard) -> None:
    for url in (
        "a.jpg",
        "./a.jpg",
        f"{shard.root}/a.jpg",
        f"file://{shard.root}/a.jpg",
        f"file:{shard.root}/a.jpg",
    ):
        assert Fetcher().fetch(url, shard) == IMAGE, url


def test_local_folders_can_be_allowed(shard: Shard, tmp_path: Path) -> None:
    for prefix, scheme in itertools.product(
        (f"{tmp_path}/set-2", f"file://{tmp_path}/set-2/"), ("", "file://")
    ):
        fetcher = Fetcher((prefix,))
        assert fetcher.fetch(f"{scheme}{tmp_path}/set-2/secret.jpg", shard) == b"secret"
        assert reason(fetcher.fetch(f"{scheme}{tmp_path}/secret.jpg", shard)) is Reason.NOT_ALLOWED


def test_files_that_cannot_be_read_are_failures(shard: Shard) -> None:
    root = Path(shard.root)
    (root / "loop").symlink_to(root / "loop")
    (root / "big.jpg").write_bytes(bytes(2001))
    (root / "fits.jpg").write_bytes(bytes(2000))
    fetcher = Fetcher(max_bytes=2000)
    assert fetcher.fetch("fits.jpg", shard) == bytes(2000)
    assert reason(fetcher.fetch("big.jpg", shard), "2000 bytes") is Reason.TOO_LARGE
    for url in ("none.jpg", "", ".", "loop/a.jpg", "n" * 5000, "http://[bad", "a\ud800.jpg"):
        answer = fetcher.fetch(url, shard)
        assert reason(answer) in (Reason.FETCH_ERROR, Reason.NOT_ALLOWED), url


def test_a_filesystem_without_credentials_costs_the_sample_alone(shard: Shard) -> None:
    answer = Fetcher(("s3://bucket/images",)).fetch("s3://bucket/images/a.jpg", shard)
    assert reason(answer, "credentials") is Reason.FETCH_ERROR


def test_images_are_fetched_from_s3(s3_env: object, shard: Shard) -> None:
    fs = fsspec.filesystem("s3")
    fs.mkdir("engine-fetch")
    fs.pipe_file("engine-fetch/images/a b.jpg", IMAGE)
    fs.pipe_file("engine-fetch/private/b.jpg", b"secret")
    fetcher = Fetcher(("s3://engine-fetch/images/",))
    remote = shard_at("engine-fetch/images/00000.parquet", fs=fs)
    assert fetcher.fetch("s3://engine-fetch/images/a b.jpg", shard) == IMAGE
    assert Fetcher().fetch("s3://engine-fetch/images/a b.jpg", remote) == IMAGE
    assert Fetcher().fetch("a b.jpg", remote) == IMAGE
    for url in (
        "s3://engine-fetch/private/b.jpg",
        "../private/b.jpg",
        "s3://engine-fetch/images/../private/b.jpg",
    ):
        assert reason(fetcher.fetch(url, remote)) is Reason.NOT_ALLOWED
    for url in ("none.jpg", "s3://engine-fetch/images/", "s3://engine-fetch/images", "n" * 2000):
        assert reason(fetcher.fetch(url, remote)) is Reason.FETCH_ERROR
