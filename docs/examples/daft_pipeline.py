"""A step of a Daft pipeline: daft_pipeline.py INPUT OUTPUT MODEL."""

import sys

import daft
import pyarrow as pa
from daft import DataType, Series, col

from boring_assets.engine.embedder import Embedder

ANSWER = pa.struct({"embedding": pa.list_(pa.float32()), "reason": pa.string(), "detail": pa.string()})


@daft.cls(max_concurrency=1)  # with 8 GPUs: gpus=1, max_concurrency=8
class Clip:
    def __init__(self, model: str) -> None:
        self.embedder = Embedder(model)

    @daft.method.batch(return_dtype=DataType.from_arrow_type(ANSWER), unnest=True, batch_size=1024)
    def embed(self, images: Series) -> pa.Array:
        answers = self.embedder.embed(images.to_pylist())
        return pa.array([answer._asdict() for answer in answers], ANSWER)


source, target, model = sys.argv[1:]
pictures = daft.read_parquet(source)
pictures.select(col("key"), Clip(model).embed(col("jpg"))).write_parquet(target)
