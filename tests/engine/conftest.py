"""Fixtures for the engine: the small model that ships with the project, on the CPU in fp32."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from boring_assets.engine.encoder import Encoder
from boring_assets.engine.model import ClipModel, load_model
from boring_assets.engine.samples import Shard
from boring_assets.tiny import TINY_NAME
from tests.engine.kinds import shard_at
from tests.engine.site import IMAGE, Server, running


@pytest.fixture
def tiny() -> ClipModel:
    """A fresh copy, which a test may change."""
    return load_model(TINY_NAME)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """A shared one: tests only embed with it. The batch is small, so that shards share batches."""
    return Encoder(load_model(TINY_NAME), device="cpu", precision="fp32", batch_size=16)


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """A shard in `set/`, with an image beside it and a secret outside of its root."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set-2").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(IMAGE)
    (tmp_path / "set-2" / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return shard_at(tmp_path / "set" / "00000.parquet")
