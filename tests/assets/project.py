"""A whole project for a test: an input, an output, a Dagster home of its own, and runs in this process."""

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from fsspec.implementations.local import LocalFileSystem

from boring_assets.commands.runs import Outcome, run_range
from boring_assets.datasets import ASSET_KEY
from boring_assets.definitions import build_definitions
from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.instance.homes import open_instance
from boring_assets.jobs import EMBED_JOB
from boring_assets.parts import register_shards
from boring_assets.settings import Settings
from boring_assets.shard_states import State, get_shard_states
from boring_assets.tags import RANGE_END_TAG, RANGE_START_TAG
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


class Project:
    """The project as its users have it, with the small model on the CPU in fp32."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, input_dir: object, output_dir: object, **more: Any
    ) -> None:
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        self.home = home
        fixed = {"model": "boring-tiny", "device": "cpu", "precision": "fp32", "decode_workers": 2}
        self.settings = Settings(input_dir=str(input_dir), output_dir=str(output_dir), **fixed | more)
        self.instance = open_instance(self.settings.output_dir)

    def register(self, *keys: str) -> list[str]:
        """Registers the shards that the input holds, or some keys whatever it holds."""
        if keys:
            self.instance.add_dynamic_partitions("shards", list(keys))
            return list(keys)
        return register_shards(
            self.instance, ShardSource.from_settings(self.settings).discover(), self.settings
        )

    def run(self, first: str, last: str | None = None, max_samples: int = 0) -> Outcome:
        """Runs a range as the sensor and the command line do: what is committed already is taken over."""
        return run_range(self.settings, self.instance, first, last or first, max_samples)

    def run_anew(
        self, first: str, last: str | None = None, tags: dict[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Runs a range as a backfill of the web UI does, with the tags that its user gives."""
        job = build_definitions(self.settings).resolve_job_def(EMBED_JOB)
        every = {RANGE_START_TAG: first, RANGE_END_TAG: last or first} | (tags or {})
        return job.execute_in_process(instance=self.instance, tags=every, raise_on_error=False)

    def events(self) -> list[dg.AssetMaterialization]:
        """Every materialization so far, the oldest first."""
        records = self.instance.fetch_materializations(ASSET_KEY, limit=1000, ascending=True).records
        return [record.asset_materialization for record in records if record.asset_materialization]

    def states(self) -> dict[str, State]:
        """Each shard's state, as the sensor and the command line see it."""
        found = ShardSource.from_settings(self.settings).discover()
        committed = EmbeddingsIOManager.from_settings(self.settings).committed
        return get_shard_states(self.instance, found, self.settings.embedding_version(), committed).states

    def path(self, key: str, kind: str = "image_embeddings") -> Path:
        return Path(self.settings.output_dir) / kind / f"{key}.parquet"

    def table(self, key: str, kind: str = "image_embeddings") -> pa.Table:
        return pq.read_table(self.path(key, kind))


def metadata_of(event: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in event.metadata.items()}


def stored(folder: Path) -> Iterator[bytes]:
    """Everything that is stored below a folder: file names, files, and the unpacked cells of databases."""
    for path in folder.rglob("*"):
        yield str(path).encode()
        if not path.is_file():
            continue
        content = path.read_bytes()
        yield content
        if content.startswith(b"SQLite format 3"):
            yield from _cells(path)


def _cells(database: Path) -> Iterator[bytes]:
    connection = sqlite3.connect(database)
    try:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for cell in row:
                    if isinstance(cell, bytes):
                        yield zlib.decompress(cell) if cell[:1] == b"\x78" else cell
                    elif isinstance(cell, str):
                        yield cell.encode()
    finally:
        connection.close()


def finished_shard(
    key: str,
    embedded: int = 6,
    failed: int = 2,
    *,
    version: str = "v1",
    dim: int = 8,
    caption: str = "a cat",
    failure: str = "no image",
) -> EmbeddedShard:
    """What the engine gives for a shard, without the model: its last rows failed."""
    total = embedded + failed
    keys = [f"{key}-{row}" for row in range(total)]
    rows = pa.table(
        {
            "url": [f"https://example.com/{name}.jpg" for name in keys],
            "caption": [caption] * total,
            "key": keys,
        }
    )
    vectors = np.random.default_rng(embedded).normal(size=(embedded, dim)).astype(np.float32)
    return EmbeddedShard(
        shard=Shard(
            key, f"file:///in/{key}.parquet", LocalFileSystem(), f"/in/{key}.parquet", "/in", version
        ),
        rows=rows,
        columns={"url": "url", "key": "key", "caption": "caption"},
        embedded=np.arange(embedded),
        embeddings=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        failures={row: Failure(Reason.DECODE_ERROR, failure) for row in range(embedded, total)},
        seconds=1.0,
        image_bytes=1000,
        cut=0,
    )


def outdated(
    instance: dg.DagsterInstance, defs: dg.Definitions, asset: dg.AssetKey, partition: str
) -> list[str]:
    """Why the UI calls a partition outdated."""
    resolver = CachingStaleStatusResolver(
        instance, defs.resolve_asset_graph(), LoadingContextForTest(instance)
    )
    return [cause.reason for cause in resolver.get_stale_causes(asset, partition)]
