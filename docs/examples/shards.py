"""Embeds whole shards, of any layout, without Dagster: shards.py INPUT OUTPUT MODEL."""

import sys
from pathlib import Path

import pyarrow.parquet as pq

from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import FailedShard, embed_shards
from boring_assets.output.schema import embeddings_table, failures_table
from boring_assets.storage.root import open_root
from partitions.discovery import discover

source, target, model = sys.argv[1:]

shards = discover(open_root(source), quiet_seconds=0).shards
for result in embed_shards(shards, Encoder(load_model(model))):
    if isinstance(result, FailedShard):
        print(f"{result.shard.key}: {result.error}")
        continue
    stem = Path(target, result.shard.key)
    stem.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(embeddings_table(result, "float32", {}), f"{stem}.parquet")
    pq.write_table(failures_table(result), f"{stem}.failures.parquet")
    print(f"{result.shard.key}: {len(result.embedded)} embedded, {len(result.failures)} failed")
