"""Measures labels and scores of random vectors by two heads, through the code of the asset.

    python -m benchmarks.heads --rows 1000000 --dim 768

The heads are one layer with ten labels, like zero-shot labels, and an MLP of the size of LAION's aesthetic
predictor (768, 1024, 128, 64, 16, 1). The vectors are committed first, 10,000 in a partition.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.duplicates import commit
from boring_assets.assets.image_labels import Labeller
from boring_assets.head_settings import HeadSettings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager

_EACH = 10_000
_LAYERS = (1024, 128, 64, 16, 1)


def main() -> None:
    """Commits the vectors, computes the heads in another process, and prints time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.output:
        label(args.output)
        return
    with tempfile.TemporaryDirectory(prefix="heads-") as folder:
        output, rng = EmbeddingsIOManager(output_dir=folder), np.random.default_rng(0)
        for start in range(0, args.rows, _EACH):
            part = rng.standard_normal((min(_EACH, args.rows - start), args.dim), np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            commit(output, f"{start // _EACH:05}", part)
        write_heads(Path(folder), args.dim)
        command = [sys.executable, "-m", "benchmarks.heads", "--output", folder]
        subprocess.run(command, check=True)


def write_heads(folder: Path, dim: int) -> None:
    """Writes random weights: a layer with ten outputs, and an MLP."""
    rng, sizes = np.random.default_rng(1), (dim, *_LAYERS)
    save_file({"weight": rng.standard_normal((10, dim), np.float32)}, folder / "labels.safetensors")
    tensors = {}
    for number, (before, after) in enumerate(pairwise(sizes)):
        tensors[f"layers.{number}.weight"] = rng.standard_normal((after, before), np.float32) / before**0.5
        tensors[f"layers.{number}.bias"] = np.zeros(after, np.float32)
    save_file(tensors, folder / "mlp.safetensors")


def label(folder: str) -> None:
    """Computes both heads of all partitions, then only the MLP, with `relu` between its layers."""
    output = EmbeddingsIOManager(output_dir=folder)
    keys = sorted(output.committed())
    for activation in ("none", "relu"):
        heads = {
            "label": HeadSettings(weights=f"{folder}/labels.safetensors", labels=tuple("abcdefghij")),
            "aesthetic": HeadSettings(weights=f"{folder}/mlp.safetensors", activation=activation),
        }
        labeller = Labeller(heads, ClipResource(), output)
        wall, cpu = time.perf_counter(), time.process_time()
        computed = {labeller.label(key)["computed"] for key in keys}
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{', '.join(computed)}, activation {activation}: {wall:.1f} s, {cpu:.1f} CPU s, "
            f"peak memory so far {peak:.2f} GB, load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
