"""Partitions of made-up vectors, and faults to plant in one of them, each with the check that it trips."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.output.schema import METADATA_KEY
from boring_assets.settings import Settings
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.assets.project import finished_shard

BAD = "00003"
KEYS = ["00000", "00001", "00002", BAD, "00004"]
DIM = 16


def vectors(count: int, seed: int, towards: int = 0) -> np.ndarray:
    """Unit vectors around one axis."""
    found = np.random.default_rng(seed).normal(size=(count, DIM)) + 3 * np.eye(DIM)[towards]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def commit(settings: Settings, key: str, embeddings: np.ndarray, /, **changes: Any) -> None:
    shard = ShardSource.from_settings(settings).find([key])[key]
    version = settings.embedding_version()
    facts = {
        "dim": DIM,
        "weights_digest": "w",
        "settings": version,
        "model": "m",
        "pretrained": "",
        "precision": "fp32",
    }
    result = finished_shard(key, embedded=len(embeddings), failed=4)
    result = replace(result, shard=shard, embeddings=embeddings)
    EmbeddingsIOManager.from_settings(settings).commit(result, facts | changes)


def path(settings: Settings, kind: str = "image_embeddings") -> Path:
    return Path(settings.output_dir) / kind / f"{BAD}.parquet"


def rewrite(settings: Settings, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other vectors in the file, all else as it was."""
    table = pq.read_table(path(settings))
    changed = change(np.stack(table["embedding"].to_numpy()))
    column = pa.FixedSizeListArray.from_arrays(pa.array(changed.reshape(-1)), changed.shape[1])
    at = table.column_names.index("embedding")
    pq.write_table(table.set_column(at, "embedding", column), path(settings))


def facts_changed(settings: Settings, old: bytes, new: bytes) -> None:
    table = pq.read_table(path(settings))
    facts = table.schema.metadata[METADATA_KEY]
    assert old in facts
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: facts.replace(old, new)}), path(settings))


def lose_a_row(settings: Settings) -> None:
    pq.write_table(pq.read_table(path(settings)).slice(1), path(settings))


def lose_a_failure(settings: Settings) -> None:
    failures = pq.read_table(path(settings, "image_failures"))
    pq.write_table(failures.slice(1), path(settings, "image_failures"))


def name_a_failure_twice(settings: Settings) -> None:
    failures = pq.read_table(path(settings, "image_failures"))
    twice = pa.concat_tables([failures.slice(1), failures.slice(1, 1)])
    pq.write_table(twice, path(settings, "image_failures"))


def lose_the_failures_file(settings: Settings) -> None:
    path(settings, "image_failures").unlink()


def lose_the_file(settings: Settings) -> None:
    path(settings).unlink()


def cut_the_file(settings: Settings) -> None:
    path(settings).write_bytes(path(settings).read_bytes()[:-100])


def fail_many(settings: Settings) -> None:
    commit(settings, BAD, vectors(20, 3))


def one_nan(embeddings: np.ndarray) -> np.ndarray:
    embeddings[7, 3] = np.nan
    return embeddings


def one_long(embeddings: np.ndarray) -> np.ndarray:
    embeddings[7] *= 1.01
    return embeddings


def shorter(embeddings: np.ndarray) -> np.ndarray:
    return embeddings[:, :8] / np.linalg.norm(embeddings[:, :8], axis=1, keepdims=True)


def all_equal(embeddings: np.ndarray) -> np.ndarray:
    return np.repeat(embeddings[:1], len(embeddings), axis=0)


def nearly_equal(embeddings: np.ndarray) -> np.ndarray:
    close = embeddings[:1] + embeddings / 1000
    return close / np.linalg.norm(close, axis=1, keepdims=True)


def most_equal(embeddings: np.ndarray) -> np.ndarray:
    embeddings[:60] = embeddings[0]
    return embeddings


def elsewhere(embeddings: np.ndarray) -> np.ndarray:
    return vectors(len(embeddings), 99, towards=5)


def repeat_a_key(settings: Settings) -> None:
    table = pq.read_table(path(settings))
    keys = table["key"].to_pylist()
    at = table.column_names.index("key")
    pq.write_table(table.set_column(at, "key", pa.array([keys[1], *keys[1:]])), path(settings))


def commit_another_shard_twice(settings: Settings) -> None:
    commit(settings, BAD, vectors(100, 0))


def change_the_source(settings: Settings) -> None:
    shard = Path(settings.input_dir) / f"{BAD}.parquet"
    pq.write_table(pq.read_table(shard).slice(1), shard)


FAULTS = [
    ("rows_accounted_for", lose_a_row),
    ("rows_accounted_for", lose_a_failure),
    ("rows_accounted_for", name_a_failure_twice),
    ("rows_accounted_for", lose_the_failures_file),
    ("rows_accounted_for", lose_the_file),
    ("rows_accounted_for", cut_the_file),
    ("rows_accounted_for", lambda settings: facts_changed(settings, b'"rows": 104', b'"rows": 105')),
    ("failure_rate", fail_many),
    ("unit_norm", lambda settings: rewrite(settings, one_nan)),
    ("unit_norm", lambda settings: rewrite(settings, one_long)),
    ("dimension", lambda settings: rewrite(settings, shorter)),
    ("dimension", lambda settings: facts_changed(settings, b'"dim": 16', b'"dim": 17')),
    ("collapsed", lambda settings: rewrite(settings, all_equal)),
    ("collapsed", lambda settings: rewrite(settings, nearly_equal)),
    ("collapsed", lambda settings: rewrite(settings, most_equal)),
    ("drift", lambda settings: rewrite(settings, elsewhere)),
    ("duplicates", repeat_a_key),
    ("duplicates", commit_another_shard_twice),
    ("stale", change_the_source),
    ("stale", lambda settings: commit(settings, BAD, vectors(100, 3), settings="another model")),
    ("stale", lambda settings: commit(settings, BAD, vectors(100, 3), weights_digest="x")),
]
