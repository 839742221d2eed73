"""Fixtures for all tests: a clean environment, a real S3 server, real img2dataset output."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from aiobotocore.client import AioBaseClient

from tests.postgres import Postgres, program
from tests.seaweed import Seaweed, forget_filesystems

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


HEAVY_FIXTURES = {"browser", "cloud", "containers", "postgres", "ray"}
"""A test that uses one of these is `heavy`: `make test` leaves it to `make test-all`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of servers and programs that not every change needs."""
    for item in items:
        if HEAVY_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.heavy)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Removes this machine's settings, credentials and Dagster home, and what another test has set."""
    for name in list(os.environ):
        if name.startswith(("BORING_", "DAGSTER_", "AWS_", "FSSPEC_")):
            monkeypatch.delenv(name)
    nowhere = tmp_path_factory.getbasetemp() / "no-such-file"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    forget_filesystems()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A SeaweedFS server with real authentication, for the whole session."""
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3_env(s3: Seaweed, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Seaweed:
    """The S3 server, with this process's AWS variables set to the identity with full rights."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def s3_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of this process's S3 requests from here on, in order."""
    calls: list[str] = []
    call = AioBaseClient._make_api_call

    async def counted(self: AioBaseClient, method: str, arguments: dict[str, object]) -> object:
        calls.append(method)
        return await call(self, method, arguments)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counted)
    return calls


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server with a password, for the whole session."""
    if program("initdb") is None:
        pytest.skip("no PostgreSQL that this user can run; on Debian: apt-get install postgresql")
    with Postgres() as server:
        yield server


@pytest.fixture
def shared_data() -> Path:
    """Folder of real img2dataset output; see its README.md."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real img2dataset output at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder for a test that runs as a user without root's rights, even when root started the tests."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, nobody, nobody)
        os.seteuid(nobody)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)
