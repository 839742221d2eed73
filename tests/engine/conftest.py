"""Fixtures for the engine: the small model that ships with the project, on the CPU in fp32."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import ClipModel, load_model
from boring_assets.engine.samples import Shard
from boring_assets.tiny import TINY_NAME
from tests.engine.kinds import jpeg, shard_at, write_tar
from tests.engine.shards import make_shard
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


@pytest.fixture
def many(tmp_path: Path) -> list[Shard]:
    """Tars and columns, enough that the end of the first is far from the end of all."""
    shards = []
    for number in range(30):
        images: list[bytes | None] = [jpeg(row) for row in range(40)]
        if number % 2:
            shards.append(make_shard(tmp_path, f"{number:05}", images))
        else:
            path = tmp_path / f"{number:05}.parquet"
            pq.write_table(pa.table({"key": [f"{row}" for row in range(40)]}), path)
            write_tar(
                path.with_suffix(".tar"), [(f"{row}.jpg", image or b"") for row, image in enumerate(images)]
            )
            shards.append(shard_at(path))
    return shards
