"""An asset of your own: a PostgreSQL table (pgvector) that follows `image_embeddings` partition by partition.

Set the connection with libpq's variables: `PGHOST`, `PGDATABASE`, `PGUSER`, `PGPASSWORD`.
"""

from contextlib import closing
from typing import Any

import dagster as dg
import psycopg2
from psycopg2.extras import execute_values

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
TABLE = """CREATE TABLE IF NOT EXISTS images (
    shard text, input_row bigint, key text, url text, caption text, embedding vector, run text,
    PRIMARY KEY (shard, input_row))"""
UPSERT = """INSERT INTO images VALUES %s ON CONFLICT (shard, input_row) DO UPDATE SET key = excluded.key,
    url = excluded.url, caption = excluded.caption, embedding = excluded.embedding, run = excluded.run"""


@dg.asset(
    partitions_def=SHARDS,
    ins={"embeddings": dg.AssetIn("image_embeddings")},
    backfill_policy=dg.BackfillPolicy.multi_run(1000),
    automation_condition=dg.AutomationCondition.eager(),
)
def pgvector_images(context: dg.AssetExecutionContext, embeddings: Any) -> None:
    """Writes a row for each embedding. Shard and row are its primary key, so a second run replaces it."""
    # A polars LazyFrame, or a dict of them by shard if the run has several partitions.
    shards = embeddings if isinstance(embeddings, dict) else {context.partition_key: embeddings}
    with closing(psycopg2.connect("")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute(TABLE)
        for shard, frame in shards.items():
            columns = frame.select("row", "key", "url", "caption", "embedding").collect()
            rows = [(shard, *each[:4], str(each[4]), context.run.run_id) for each in columns.iter_rows()]
            execute_values(cursor, UPSERT, rows, page_size=1000)
            cursor.execute(
                "DELETE FROM images WHERE shard = %s AND run <> %s", (shard, context.run.run_id)
            )  # rows that are gone
            connection.commit()
        known = context.instance.get_dynamic_partitions("shards")
        cursor.execute("DELETE FROM images WHERE NOT shard = ANY(%s)", (list(known),))  # shards that are gone
        connection.commit()
