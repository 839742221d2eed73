"""Every known way in which a URL may lead to where it must not: none does."""

import socket
from pathlib import Path

import fsspec
import pytest

from boring_assets.engine.inputs import http
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.http import is_public
from boring_assets.engine.samples import Reason, Shard
from tests.engine.kinds import shard_at
from tests.engine.site import IMAGE, Server, reason


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
        "①②⑦.0.0.1",
        "localhost.",
        "127.0.0.1.",
        "017700000001",
        "0177.0.0.1",
        "[::]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[fc00::1]",
        "[fe80::1%25lo]",
        "224.0.0.1",
        "255.255.255.255",
    ],
)
def test_a_bare_scheme_allows_public_hosts_alone(server: Server, shard: Shard, host: str) -> None:
    answer = Fetcher(("http://",)).fetch(f"http://{host}:{server.server_port}/ok/image.jpg", shard)
    assert reason(answer, "host") is Reason.NOT_ALLOWED
    assert server.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),  # what a network of IPv6 alone calls 93.184.216.34
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("2002:a00:1::", False),
        ("2001:db8::1", False),
        ("fec0::1", False),
        ("ff0e::1", False),
        ("::7f00:1", False),
        ("100.100.100.200", False),
        ("192.0.2.1", False),
        ("240.0.0.1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_redirect_to_a_private_address_is_refused_although_its_host_was_public(
    server: Server, shard: Shard
) -> None:
    """Each hop is checked: what one prefix allows does not reach further than the others do."""
    fetcher = Fetcher((f"{server.origin}/ok/", "http://"))
    for host in (f"127.0.0.1:{server.server_port}", "169.254.169.254", "[::1]", "localhost"):
        answer = fetcher.fetch(f"{server.origin}/ok/to/http://{host}/latest/meta-data", shard)
        assert reason(answer, "host") is Reason.NOT_ALLOWED
    assert all(path.startswith("/ok/to/") for path in server.asked)


def test_a_name_is_asked_for_once_and_that_answer_is_connected_to(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server of the attacker's answers first with a public address, then with a private one."""
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    connected: list[str] = []

    def resolve(host: str, port: int, **_: object) -> list[tuple]:
        assert host == "rebind.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(http, "create_connection", connect)
    # The connection is tried again, and so is the name: the second answer is seen as well.
    answer = Fetcher(("http://",), timeout=5).fetch("http://rebind.test/a.jpg", shard)
    assert reason(answer, "not a public host") is Reason.NOT_ALLOWED
    assert connected == ["93.184.216.34"]


def test_a_prefix_may_name_a_private_host(server: Server, shard: Shard) -> None:
    named = f"HTTP://LOCALHOST:{server.server_port}/ok"
    assert Fetcher((named,)).fetch(f"http://localhost:{server.server_port}/ok/image.jpg", shard) == IMAGE
