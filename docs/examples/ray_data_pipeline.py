"""A step of a Ray Data pipeline: ray_data_pipeline.py INPUT OUTPUT MODEL."""

import sys

import pyarrow as pa
import ray

from boring_assets.engine.embedder import Embedder


class Clip:
    def __init__(self, model: str) -> None:
        self.embedder = Embedder(model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        answers = self.embedder.embed(batch["jpg"].to_pylist())
        vectors = pa.array([answer.embedding for answer in answers], pa.list_(pa.float32()))
        made = batch.select(["key"]).append_column("embedding", vectors)
        return made.append_column("reason", pa.array([answer.reason for answer in answers], pa.string()))


source, target, model = sys.argv[1:]
pictures = ray.data.read_parquet(source)
made = pictures.map_batches(
    Clip,
    fn_constructor_args=[model],
    batch_format="pyarrow",
    batch_size=1024,
    compute=ray.data.ActorPoolStrategy(size=1),  # with 8 GPUs: size=8, and num_gpus=1 for map_batches
)
made.write_parquet(target)
