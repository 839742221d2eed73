"""Measures near duplicates over random vectors: time, memory, and how many known pairs are found.

    python -m benchmarks.duplicates --rows 1000000 --dim 512

The vectors are those of `benchmarks.index`. Every hundredth one is replaced by a near copy of another, at a
cosine of about 0.99. The index is built first, as `boring-assets near-duplicates` does.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from benchmarks.index import vectors
from boring_assets.engine.results import EmbeddedShard
from boring_assets.engine.samples import Shard
from boring_assets.search.duplicates import find_duplicates
from boring_assets.search.index import update_index
from boring_assets.search.lance import open_table
from resources.embeddings_io import EmbeddingsIOManager

_EACH = 10_000
_NOISE = 0.14
_THRESHOLD = 0.96
T = TypeVar("T")


def main() -> None:
    """Draws the vectors, indexes them, finds the near duplicates, and prints time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    args = parser.parse_args()
    base, _ = vectors(args.rows, args.dim, 1)
    known = add_near_copies(base)
    with tempfile.TemporaryDirectory(prefix="duplicates-") as folder:
        output = EmbeddingsIOManager(output_dir=folder)
        for start in range(0, args.rows, _EACH):
            commit(output, f"{start // _EACH:05}", base[start : start + _EACH])
        del base
        timed("index", lambda: update_index(output.root()))
        table = open_table(output.root())
        found = timed("near duplicates", lambda: find_duplicates(table, _THRESHOLD, None))
        check(found, known)


def add_near_copies(base: np.ndarray) -> list[tuple[int, int]]:
    """Replaces every hundredth vector by a near copy of another; returns the pairs."""
    rng = np.random.default_rng(1)
    places = rng.permutation(len(base))[: len(base) // 100 * 2].reshape(-1, 2)
    noise = rng.standard_normal((len(places), base.shape[1]), np.float32)
    noise *= _NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    copies = base[places[:, 0]] + noise
    base[places[:, 1]] = copies / np.linalg.norm(copies, axis=1, keepdims=True)
    return [(int(one), int(other)) for one, other in places]


def commit(output: EmbeddingsIOManager, key: str, part: np.ndarray) -> None:
    rows = pa.table({"key": [f"{key}{row:05}" for row in range(len(part))]})
    shard = Shard(key, f"file:///in/{key}.parquet", LocalFileSystem(), f"/in/{key}.parquet", "/in", "1")
    result = EmbeddedShard(shard, rows, {"key": "key"}, np.arange(len(part)), part, {}, 1.0, 1, 0)
    output.commit(result, {"model": "random", "weights_digest": "0", "dim": part.shape[1]})


def timed(what: str, work: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {wall:,.0f} s, {cpu:,.0f} CPU s, peak memory so far {peak:.1f} GB", flush=True)
    return done


def check(found: pa.Table, known: list[tuple[int, int]]) -> None:
    columns = (found[name].to_pylist() for name in ("partition", "row", "group"))
    groups = {int(partition) * _EACH + row: group for partition, row, group in zip(*columns, strict=True)}
    hits = sum(one in groups and groups[one] == groups.get(other) for one, other in known)
    print(f"{hits:,} of {len(known):,} known pairs found, {found.num_rows:,} images in groups")


if __name__ == "__main__":
    main()
