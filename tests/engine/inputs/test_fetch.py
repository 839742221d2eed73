"""Fetching by URL from real HTTP and S3 servers, within a size and a time."""

import itertools
import subprocess
import time
from pathlib import Path

import fsspec
import pytest

from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.samples import Reason, Shard
from tests.engine.kinds import shard_at
from tests.engine.site import IMAGE, Server, reason, running
from tests.waiting import HANG_SECONDS


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
        ("nested", Reason.TOO_LARGE, "1000000 bytes"),
        ("to//elsewhere/image.jpg", Reason.NOT_ALLOWED, "allowed URL prefix"),
        ("to/file:///etc/passwd", Reason.NOT_ALLOWED, "allowed URL prefix"),
        ("to/http://127.0.0.1:1/ok/x.jpg", Reason.NOT_ALLOWED, "allowed URL prefix"),
        ("to/%2e%2e/secret", Reason.NOT_ALLOWED, "climbs"),
    ],
)
def test_a_response_that_is_not_an_image_fails_with_the_reason(
    server: Server, shard: Shard, path: str, expected: Reason, detail: str
) -> None:
    fetcher = Fetcher((f"{server.origin}/ok/",), max_bytes=1_000_000, timeout=20)
    assert reason(fetcher.fetch(f"{server.origin}/ok/{path}", shard), detail) is expected
    assert not [asked for asked in server.asked if not asked.startswith("/ok/")]


@pytest.mark.parametrize("path", ["silent", "drip", "busy", "slow_header", "slow_headers", "continue"])
def test_one_image_takes_no_more_than_the_time_in_all(server: Server, shard: Shard, path: str) -> None:
    """A server that says nothing, or little by little, or asks for patience of an hour, is left alone."""
    fetcher = Fetcher((server.origin,), timeout=2)
    before = time.monotonic()
    assert reason(fetcher.fetch(f"{server.origin}/ok/{path}", shard)) is Reason.FETCH_ERROR
    assert time.monotonic() - before < 25, "the server goes on for 30"


def test_the_time_in_all_holds_for_tls_too(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "server.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        pem,
        *names,
    ]
    subprocess.run(command, capture_output=True, check=True, timeout=HANG_SECONDS)
    pem.write_bytes(key.read_bytes() + pem.read_bytes())
    with running(pem) as server:
        assert reason(Fetcher((server.origin,)).fetch(f"{server.origin}/ok/image.jpg", shard), "certificate")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        fetcher = Fetcher((server.origin,), timeout=3)
        assert fetcher.fetch(f"{server.origin}/ok/image.jpg", shard) == IMAGE
        for path in ("slow_header", "drip", "continue"):
            before = time.monotonic()
            assert reason(fetcher.fetch(f"{server.origin}/ok/{path}", shard)) is Reason.FETCH_ERROR
            assert time.monotonic() - before < 25, "the server goes on for 30"


def test_nothing_listens(shard: Shard) -> None:
    answer = Fetcher(("http://127.0.0.1:9",), timeout=5).fetch("http://127.0.0.1:9/a.jpg", shard)
    assert reason(answer) is Reason.FETCH_ERROR


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


def test_a_filesystem_without_credentials_fails_the_sample_alone(shard: Shard) -> None:
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
