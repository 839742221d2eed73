"""A small dataset with vectors that say what they are, committed as a run commits it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.engine.samples import Shard
from boring_assets.search.lance import open_table
from boring_assets.storage.root import Root
from boring_assets.tiny.pictures import Combination, draw
from resources.embeddings_io import EmbeddingsIOManager

DIM = 16
FACTS = {"model": "made-up", "pretrained": "", "weights_digest": "0123", "dim": DIM}


def commit(
    output: EmbeddingsIOManager, key: str, rows: int = 5, seed: int = 0, facts: Any = None, **columns: Any
) -> np.ndarray:
    """Commits a shard of random unit vectors, and gives them."""
    vectors = np.random.default_rng((seed, *key.encode())).normal(size=(rows, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    commit_vectors(output, key, vectors, facts, **columns)
    return vectors


def commit_vectors(
    output: EmbeddingsIOManager, key: str, vectors: np.ndarray, facts: Any = None, **columns: Any
) -> None:
    """Commits a shard of some vectors."""
    names = [f"{key}-{row}" for row in range(len(vectors))]
    urls = [f"https://example.com/{name}" for name in names]
    table = pa.table({"url": urls, "caption": ["a 'caption'"] * len(names), "key": names, **columns})
    shard = Shard(key, f"file:///in/{key}.parquet", LocalFileSystem(), f"/in/{key}.parquet", "/in", "v1")
    own = {name: name for name in ("url", "caption", "key")}
    result = EmbeddedShard(shard, table, own, np.arange(len(names)), vectors, {}, 1.0, 1, 0)
    output.commit(result, facts or FACTS)


def contents(root: Root) -> dict[tuple[str, int], list[float]]:
    """Every row of the index; one that is there twice fails the test."""
    table = open_table(root)
    rows = table.search().select(["partition", "row", "vector"]).to_arrow().to_pylist()
    found = {(row["partition"], row["row"]): row["vector"] for row in rows}
    assert len(found) == len(rows), "a row is in the index twice"
    return found


def jpeg(combination: Combination, seed: int, size: int = 96, quality: int = 95) -> bytes:
    """A drawn picture, encoded."""
    return encoded(draw(combination, size, seed), quality=quality)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_shard(
    path: Path, captions: Sequence[str | None], images: Sequence[bytes], **columns: Sequence[Any]
) -> None:
    """A complete shard in img2dataset's parquet layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"{path.stem}{row:04}" for row in range(len(images))]
    table = {"key": keys, "caption": list(captions), "url": [f"https://example.com/{key}" for key in keys]}
    pq.write_table(pa.table({**table, **columns, "jpg": pa.array(images, pa.binary())}), path)
    path.with_name(f"{path.stem}_stats.json").write_text("{}")
