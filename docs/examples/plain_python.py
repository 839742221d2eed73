"""Embeds the images of a parquet file's column `jpg`: plain_python.py INPUT OUTPUT MODEL."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.embedder import Embedder

source, target, model = sys.argv[1:]
embedder = Embedder(model)

table = pq.read_table(source)
answers = embedder.embed(table["jpg"].to_pylist())
vectors = pa.array([answer.embedding for answer in answers], pa.list_(pa.float32(), embedder.dim))
made = {"key": table["key"], "embedding": vectors, "reason": [answer.reason for answer in answers]}
pq.write_table(pa.table(made), target)
