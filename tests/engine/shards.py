"""Shards for the engine's tests, and what must hold of every answer."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import EmbeddedShard, FailedShard, embed_shards
from boring_assets.engine.samples import Shard
from tests.engine.kinds import shard_at


def make_shard(folder: Path, name: str, images: list[bytes | None]) -> Shard:
    """A shard with its images in a column."""
    table = pa.table(
        {"key": [f"{name}-{row}" for row in range(len(images))], "jpg": pa.array(images, pa.binary())}
    )
    pq.write_table(table, folder / f"{name}.parquet")
    return shard_at(folder / f"{name}.parquet")


def embedded(results: list[EmbeddedShard | FailedShard]) -> list[EmbeddedShard]:
    """The same, after it was found that each row of each has been answered once."""
    good = []
    for result in results:
        assert isinstance(result, EmbeddedShard), result
        assert result.rows.num_rows == len(result.embedded) + len(result.failures)
        assert sorted([*result.embedded.tolist(), *result.failures]) == list(range(result.rows.num_rows))
        assert result.embedded.tolist() == sorted(result.embedded.tolist())
        assert result.embeddings.shape[0] == len(result.embedded)
        assert result.embeddings.dtype == np.float32
        assert np.allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)
        good.append(result)
    return good


def alone(encoder: Encoder, folder: Path, image: bytes) -> np.ndarray:
    """The embedding of one image in a shard of its own."""
    (result,) = embedded(list(embed_shards([make_shard(folder, "alone", [image])], encoder)))
    return result.embeddings[0]


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for the last bits, which hang on the size of a batch."""
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max(initial=0) < 1e-4
