"""Compares the engine's embeddings with those of open_clip's own preprocess and fp32 model.

    python -m benchmarks.faithfulness [--models ...]

The engine embeds a shard with each kind of image in several sizes, in fp32 and bf16. The table shows the
median and the lowest cosine of each kind. `different images` is the median cosine between different images:
near 1, as with random weights, a high cosine proves less.
"""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common import TINY, Model
from benchmarks.end_to_end import make_checkpoint
from benchmarks.gpu import shards_in
from benchmarks.others import load
from benchmarks.table import machine, print_table
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import EmbeddedShard, embed_shards
from tests.engine.kinds import FAST, KINDS, sample

SIZES = ((64, 64), (256, 256), (640, 427), (300, 900), (1024, 768))


def reference(model: Model, images: list[bytes]) -> np.ndarray:
    """Returns the embeddings of open_clip, float32 [n, dim], L2-normalized."""
    import torch

    module, preprocess = load(model)
    pixels = [preprocess(Image.open(io.BytesIO(data))) for data in images]
    with torch.inference_mode():
        parts = [module.encode_image(part, normalize=True) for part in torch.stack(pixels).split(32)]
    return torch.cat(parts).numpy()


def ours(model: Model, images: list[bytes], precision: str) -> np.ndarray:
    """Returns the embeddings of the engine for a shard with these images, float32 [n, dim]."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        keys = [f"{row:05d}" for row in range(len(images))]
        pq.write_table(pa.table({"key": keys, "jpg": images}), Path(folder) / "00000.parquet")
        encoder = Encoder(load_model(model.name, model.checkpoint), "cpu", precision)
        (result,) = embed_shards(shards_in(Path(folder)), encoder)
        assert isinstance(result, EmbeddedShard)
        assert not result.failures, result.failures
        return result.embeddings


def compare(model: Model) -> None:
    """Prints the table of one model."""
    named = [(kind, sample(kind, *size)) for kind in KINDS for size in SIZES]
    images: list[Any] = [data for _, data in named]
    wanted = reference(model, images)
    cosines = {
        precision: (ours(model, images, precision) * wanted).sum(axis=1) for precision in ("fp32", "bf16")
    }
    different = np.median((wanted @ wanted.T)[np.triu_indices(len(wanted), 1)])
    rows = [["kind", "path", "fp32 median", "fp32 lowest", "bf16 median", "bf16 lowest"]]
    kinds = np.array([kind for kind, _ in named])
    for kind in [*KINDS, "all"]:
        picked = kinds == kind if kind != "all" else np.full(len(kinds), True)
        path = "" if kind == "all" else "fast" if kind in FAST else "Pillow"
        cells = [f"{pick(values[picked]):.6f}" for values in cosines.values() for pick in (np.median, np.min)]
        rows.append([kind, path, *cells])
    sizes = ", ".join(f"{width} x {height}" for width, height in SIZES)
    print(f"{model.name}: cosine to open_clip; each kind in {sizes}. {machine()}")
    print(f"different images: {different:.3f}")
    print_table(rows)


def main() -> None:
    """Compares each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[TINY, "ViT-B-32"])
    args = parser.parse_args()
    for name in args.models:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            compare(Model(name, make_checkpoint(name, Path(folder))))


if __name__ == "__main__":
    main()
