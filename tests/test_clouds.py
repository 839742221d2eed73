"""The commands on other object storages than SeaweedFS: Azure, Google Cloud, and a second S3."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from boring_assets.errors import StorageError
from boring_assets.search.lance import open_table
from boring_assets.storage.root import open_root
from tests import clouds
from tests.clouds import Cloud
from tests.command_line import CommandLine

SERVERS: dict[str, Callable[[Path], AbstractContextManager[Cloud]]] = {
    "azure": clouds.azurite,
    "gcs": clouds.gcs,
    "moto": clouds.moto,
}


@pytest.fixture(params=SERVERS)
def cloud(
    request: pytest.FixtureRequest, tmp_path: Path, clean_environment: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cloud]:
    with SERVERS[request.param](tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        root = open_root(server.uri)
        if not root.fs.exists(root.path):
            root.fs.mkdir(root.path)
        yield server


@pytest.mark.slow
def test_every_command_works(cloud: Cloud, tmp_path: Path) -> None:
    call = CommandLine(tmp_path)
    shards, output = f"{cloud.uri}/input", f"{cloud.uri}/output"
    call("sample-data", tmp_path / "input", "--num-shards", 2, "--samples-per-shard", 12, "--broken", 1)
    root = open_root(cloud.uri)
    root.fs.put(str(tmp_path / "input"), f"{root.path}/", recursive=True)

    said = call("embed", shards, output).output
    assert "24: 22 embedded, 2 failed" in said
    assert "Nothing to do" in call("embed", shards, output).output
    status = json.loads(call("status", "--input", shards, "--output", output, "--json").output)
    assert status["counts"]["done"] == 2
    call("verify", output, "--input", shards)
    assert "not_downloaded" in call("failures", "--output", output).output

    if cloud.uri.startswith("gs://"):
        # The request reaches the emulator, which has no XML API, the one that LanceDB uses.
        with pytest.raises(StorageError, match=r"127\.0\.0\.1.*status: 501"):
            open_table(open_root(output))
        return
    assert "22 images" in call("index", "--output", output).output
    hits = json.loads(call("search", "two red circles", "--output", output, "--json").stdout)
    assert len(hits) == 10
    assert "exact" in call("near-duplicates", "--output", output).output
    call("clip-scores", "--output", output)
    call("export", output, tmp_path / "export", "--format", "npy")
    if cloud.secret:
        files = [path for path in tmp_path.rglob("*") if path.is_file() and "home" in path.parts]
        assert files
        assert not any(cloud.secret.encode() in path.read_bytes() for path in files)
