"""An asset of your own: a Qdrant collection that follows `image_embeddings`, partition by partition."""

import os
import uuid
from typing import Any

import dagster as dg
from qdrant_client import QdrantClient, models

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
COLLECTION = "images"
BATCH = 1000


@dg.asset(
    partitions_def=SHARDS,
    ins={"embeddings": dg.AssetIn("image_embeddings")},
    backfill_policy=dg.BackfillPolicy.multi_run(1000),
    automation_condition=dg.AutomationCondition.eager(),
)
def qdrant_images(context: dg.AssetExecutionContext, embeddings: Any) -> None:
    """Writes a point for each embedding. Shard and row make its id, so a second run replaces it."""
    # A polars LazyFrame, or a dict of them by shard if the run has several partitions.
    shards = embeddings if isinstance(embeddings, dict) else {context.partition_key: embeddings}
    url = os.environ.get("QDRANT_URL")
    client = QdrantClient(url=url) if url else QdrantClient(path=os.environ["QDRANT_FOLDER"])
    for shard, frame in shards.items():
        rows = frame.select("row", "key", "url", "caption", "embedding").collect()
        if not client.collection_exists(COLLECTION):
            size = rows["embedding"].to_numpy().shape[1]
            vectors = models.VectorParams(size=size, distance=models.Distance.COSINE)
            client.create_collection(COLLECTION, vectors_config=vectors)
        for part in rows.iter_slices(BATCH):
            about = part.drop("embedding").to_dicts()
            ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"{shard}/{each['row']}")) for each in about]
            payloads = [{**each, "shard": shard, "run": context.run.run_id} for each in about]
            batch = models.Batch(ids=ids, vectors=part["embedding"].to_list(), payloads=payloads)
            client.upsert(COLLECTION, batch)
        mine = models.FieldCondition(key="shard", match=models.MatchValue(value=shard))
        new = models.FieldCondition(key="run", match=models.MatchValue(value=context.run.run_id))
        client.delete(COLLECTION, models.Filter(must=[mine], must_not=[new]))  # rows that are gone
    known = context.instance.get_dynamic_partitions("shards")
    there = models.FieldCondition(key="shard", match=models.MatchAny(any=list(known)))
    client.delete(COLLECTION, models.Filter(must_not=[there]))  # shards that are gone
    client.close()
