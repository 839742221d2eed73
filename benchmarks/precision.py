"""Compares the precisions of a model on the CPU: images a second of the engine, and cosines with fp32.

    python -m benchmarks.precision [--models boring-tiny ViT-B-32] [--images 2000 96] [--rounds 3]

Reading, decoding and the model run as in a run, without Dagster and commits. The sides of a round follow each
other. Models of open_clip's zoo have random weights, which say little about cosines.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import TINY
from benchmarks.gpu import random_model, shards_in
from benchmarks.pictures import write_shards
from benchmarks.table import machine, print_table
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import EmbeddedShard, embed_shards

PRECISIONS = ("fp32", "bf16", "int8")


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[TINY, "ViT-B-32"])
    parser.add_argument("--images", nargs="+", type=int, default=[2000, 96], help="for each model")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    for name, count in zip(options.models, options.images, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), 2, count // 2)
            compare(name, Path(folder), options.rounds)


def compare(name: str, folder: Path, rounds: int) -> None:
    """Prints the table of one model."""
    import torch

    encoders, starts = {}, {}
    for precision in PRECISIONS:
        torch.manual_seed(0)  # the same random weights for each
        model = load_model(name) if name == TINY else random_model(name)
        start = time.perf_counter()
        encoders[precision] = Encoder(model, "cpu", precision)
        starts[precision] = time.perf_counter() - start
    rates: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    vectors = {}
    for _ in range(rounds):
        for precision, encoder in encoders.items():
            start = time.perf_counter()
            done = list(embed_shards(shards_in(folder), encoder))
            vectors[precision] = np.concatenate(
                [one.embeddings for one in done if isinstance(one, EmbeddedShard)]
            )
            rates[precision].append(len(vectors[precision]) / (time.perf_counter() - start))
    rows = [[name, "images a second", "over fp32", "cosine, median", "worst", "s to convert the model"]]
    for precision in PRECISIONS:
        cosines = (vectors[precision] * vectors["fp32"]).sum(axis=1)
        ratio = statistics.median(a / b for a, b in zip(rates[precision], rates["fp32"], strict=True))
        numbers = f"{statistics.median(rates[precision]):.1f}", f"{ratio:.2f}", f"{np.median(cosines):.5f}"
        rows.append([precision, *numbers, f"{cosines.min():.5f}", f"{starts[precision]:.1f}"])
    print_table(rows)


if __name__ == "__main__":
    main()
