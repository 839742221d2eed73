"""A step of a Daft pipeline: daft_pipeline.py INPUT OUTPUT MODEL."""

import sys

import daft
from daft import DataType, Series, col

from boring_assets.engine.embedder import Embedder

ANSWER = DataType.struct(
    {
        "embedding": DataType.list(DataType.float32()),
        "reason": DataType.string(),
        "detail": DataType.string(),
    }
)


@daft.cls(max_concurrency=1, use_process=False)  # on a cluster: gpus=1, and as many as there are GPUs
class Clip:
    def __init__(self, model: str) -> None:
        self.embedder = Embedder(model)

    @daft.method.batch(return_dtype=ANSWER, unnest=True, batch_size=1024)
    def embed(self, images: Series) -> list:
        return [answer._asdict() for answer in self.embedder.embed(images.to_pylist())]


source, target, model = sys.argv[1:]
pictures = daft.read_parquet(source)
pictures.select(col("key"), Clip(model).embed(col("jpg"))).write_parquet(target)
