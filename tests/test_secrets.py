"""Planted secrets of every kind: none is found again in what runs, good or bad, store and print."""

import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.secrets import without_secrets
from tests.assets.project import Project, stored
from tests.command_line import PROGRAM, CommandLine
from tests.seaweed import free_ports
from tests.waiting import HANG_SECONDS

SECRET = "planted-0123456789"
ENVIRONMENT = {
    name: f"{SECRET}-{name}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "PGPASSWORD", "MY_API_KEY")
} | {"AWS_ACCESS_KEY_ID": "key", "AWS_MAX_ATTEMPTS": "1"}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


def leaks(folder: Path, *printed: str) -> list[bytes]:
    """What of everything below a folder and on the terminal holds the secret."""
    everything = [*stored(folder), *(text.encode() for text in printed)]
    return [part[:2000] for part in everything if SECRET.encode() in part]


def test_signed_urls_that_cannot_be_fetched(cli: CommandLine, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    urls = [
        f"http://127.0.0.1:{port}/a.jpg?X-Amz-Signature={SECRET}&x=1",
        f"https://example.com/a.jpg?token={SECRET}",
        f"s3://elsewhere/a.jpg?sig={SECRET}",
        f"https://me:{SECRET}@example.com/a.jpg",
        f"a.jpg?token={SECRET}",
        f"/etc/a.jpg?password={SECRET}",
        f"http://[::1/a.jpg?token={SECRET}",
        f"ftps3://me:{SECRET}@host/a.jpg",
    ]
    Path("in").mkdir()
    pq.write_table(pa.table({"url": urls}), "in/0.parquet")
    options = ("--quiet-seconds", 0, "--allowed-url-prefixes", f"http://127.0.0.1:{port}/")
    done = cli("embed", "in", "out", *options, **ENVIRONMENT)
    told = pq.read_table("out/image_failures/0.parquet")
    assert told["url"].to_pylist() == urls, "the column is data, and stays as it is"
    assert not [detail for detail in told["detail"].to_pylist() if SECRET in detail]
    assert {"fetch_error", "not_allowed"} == set(told["reason"].to_pylist())
    assert not leaks(tmp_path / "home", done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        (f"s3://key:{SECRET}@bucket/in", "out"),
        (f"https://host/in?X-Amz-Signature={SECRET}", "out"),
        ("in", f"s3://key:{SECRET}/a@bucket/out"),
        ("in", "out", "--allowed-url-prefixes", f"https://me:{SECRET}@host/"),
        ("in", "out", "--pretrained", f"https://host/model.pt?token={SECRET}"),
        ("in", "s3://bucket/out"),
        ("in", "out", "--config", "secret.toml"),
    ],
    ids=lambda arguments: arguments[0][:9] + arguments[1][:9] + "".join(arguments[2:3]),
)
def test_commands_that_fail_print_no_secrets(
    cli: CommandLine, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (port,) = free_ports(1)
    cli.sample_data("in", shards=1, samples=2)
    Path("secret.toml").write_text(f'aws_secret_access_key = "{SECRET}"\n')
    endpoint = f"http://me:{SECRET}@127.0.0.1:{port}"
    said = cli("embed", *arguments, code=1, AWS_ENDPOINT_URL=endpoint, **ENVIRONMENT)
    assert said.stderr.startswith("Error: ")
    Path("secret.toml").unlink()
    assert not leaks(tmp_path, said.stdout, said.stderr)


def test_no_run_stores_or_logs_secrets(cli: CommandLine, tmp_path: Path) -> None:
    cli.sample_data("in", "--broken", 1, shards=2, samples=4)
    Path("in/00001.parquet").write_bytes(b"broken")
    said = cli("embed", "in", "out", code=3, **ENVIRONMENT)
    assert not leaks(tmp_path, said.stdout, said.stderr)
    said = cli("embed", "in", "out2", "--model", "ViT-B-32", "--pretrained", "none", code=1, **ENVIRONMENT)
    assert said.stderr.startswith("Error: 'none' is neither a file nor a pretrained tag"), "named once"
    assert not leaks(tmp_path, said.stdout, said.stderr)


def test_an_endpoint_with_a_password_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://me:{SECRET}@127.0.0.1:{port}"}).items():
        monkeypatch.setenv(name, value)
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", "s3://bucket/out")
    project.register("0")
    said = project.run("0").error
    assert "s3://bucket/out/.boring_assets.json: the server does not answer" in said
    assert not leaks(tmp_path, said), "nor by the causes of the error, which Dagster stores as well"


def test_a_database_that_does_not_answer_keeps_its_password(cli: CommandLine, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(
        "storage:\n  postgres:\n    postgres_url:\n      env: PG_URL\n"
    )
    url = f"postgresql://me:{SECRET}@127.0.0.1:{port}/dagster"
    cli.sample_data("in", shards=1, samples=2)
    done = subprocess.run(
        [PROGRAM, "status", "--input", "in", "--output", "out"],
        env=os.environ | cli.env | {"PG_URL": url}, capture_output=True, text=True, check=False,
        timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode != 0
    assert not leaks(tmp_path, done.stdout, done.stderr)


def test_secrets_are_removed_from_error_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for text in (
        f"401 for {SECRET}",
        f"https://me:{SECRET}/x@host/path",
        f"Max retries exceeded with url: /a?b=1&token={SECRET} (Caused by",
        f"GET 'https://host/a?X-Goog-Signature={SECRET}'",
    ):
        assert SECRET not in without_secrets(text)
    assert without_secrets("why? a=b: http://host:80/x") == "why? a=b: http://host:80/x"
