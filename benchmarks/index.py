"""Compares nearest-neighbour indexes with exact search: recall, latency, build time, size on disk.

    python -m benchmarks.index --rows 1000000 --dim 512 lance-ivf-pq lance-hnsw-sq usearch faiss-hnsw

The vectors are random, float32 and of length 1, in clusters of about a hundred. As with real CLIP embeddings,
the variance along axis i falls as 1/i. The queries come from the same clusters. Real vectors may be easier or
harder, so this compares indexes and not datasets. usearch and faiss-cpu are not dependencies of the project:
install them to compare. docs/search.md has the figures.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 10
CHUNK = 50_000
Search = Callable[[np.ndarray], np.ndarray]
Built = Iterator[tuple[str, Search]]


def vectors(rows: int, dim: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random vectors and queries, float32 [rows, dim] and [queries, dim], of length 1."""
    rng = np.random.default_rng(seed)
    spectrum = (1 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
    centres = rng.standard_normal((max(1, rows // 100), dim), np.float32) * spectrum

    def draw(count: int) -> np.ndarray:
        drawn = centres[rng.integers(len(centres), size=count)]
        drawn += 0.6 * rng.standard_normal((count, dim), np.float32) * spectrum
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    parts = [draw(min(CHUNK, rows - start)) for start in range(0, rows, CHUNK)]
    return np.concatenate(parts), draw(queries)


def exact(base: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Returns the row numbers of the K nearest, [queries, K], and the seconds of some single queries."""
    scores = np.full((len(queries), K), -2, np.float32)
    found = np.zeros((len(queries), K), np.int64)
    for start in range(0, len(base), CHUNK):
        part = queries @ base[start : start + CHUNK].T
        best = np.argpartition(-part, K - 1, axis=1)[:, :K]
        both = np.concatenate([scores, np.take_along_axis(part, best, 1)], 1)
        rows = np.concatenate([found, best + start], 1)
        top = np.argsort(-both, axis=1)[:, :K]
        scores, found = np.take_along_axis(both, top, 1), np.take_along_axis(rows, top, 1)
    seconds = []
    for query in queries[:20]:
        began = time.perf_counter()
        np.argpartition(-(base @ query), K - 1)
        seconds.append(time.perf_counter() - began)
    return found, seconds


def lance(base: np.ndarray, folder: Path, kind: str, probes: list[tuple[int, int]]) -> Built:
    import lancedb
    import lancedb.index
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(base), CHUNK):
            part = base[start : start + CHUNK]
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), base.shape[1])
            yield pa.record_batch([pa.array(np.arange(start, start + len(part))), column], ["row", "vector"])

    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), base.shape[1]))])
    table = lancedb.connect(folder).create_table(
        "images", pa.RecordBatchReader.from_batches(schema, batches())
    )
    if kind:
        table.create_index("vector", config=getattr(lancedb.index, kind)(distance_type="cosine"))
    for nprobes, refine in probes:

        def search(query: np.ndarray, nprobes: int = nprobes, refine: int = refine) -> np.ndarray:
            asked: Any = table.search(query, vector_column_name="vector")
            asked = asked.distance_type("cosine").limit(K)
            if nprobes:
                asked = asked.nprobes(nprobes).refine_factor(refine)
            return np.array(asked.select(["row", "_distance"]).to_arrow()["row"])

        yield f"nprobes {nprobes}, refine {refine}" if nprobes else "flat", search


def usearch(base: np.ndarray, folder: Path, dtype: str) -> Built:
    from usearch.index import Index

    index = Index(ndim=base.shape[1], metric="ip", dtype=dtype)
    index.add(np.arange(len(base)), base, threads=2)
    index.save(str(folder / "index.usearch"))
    for depth in (64, 256):

        def search(query: np.ndarray, depth: int = depth) -> np.ndarray:
            index.expansion_search = depth
            return index.search(query, K).keys

        yield f"{dtype}, expansion {depth}", search


def faiss(base: np.ndarray, folder: Path, kind: str) -> Built:
    import faiss as library

    lists = int(4 * len(base) ** 0.5)
    spec = {"hnsw": "HNSW32,Flat", "ivf-pq": f"IVF{lists},PQ64", "ivf-sq8": f"IVF{lists},SQ8"}[kind]
    index: Any = library.index_factory(base.shape[1], spec, library.METRIC_INNER_PRODUCT)
    index.train(base[: 64 * lists])
    index.add(base)
    library.write_index(index, str(folder / "index.faiss"))
    for depth in (64, 256) if kind == "hnsw" else (20, 64):

        def search(query: np.ndarray, depth: int = depth) -> np.ndarray:
            if kind == "hnsw":
                index.hnsw.efSearch = depth
            else:
                index.nprobe = depth
            return index.search(query[None], K)[1][0]

        yield f"{'efSearch' if kind == 'hnsw' else 'nprobe'} {depth}", search


VARIANTS: dict[str, Callable[[np.ndarray, Path], Built]] = {
    "lance-flat": lambda base, folder: lance(base, folder, "", [(0, 0)]),
    "lance-ivf-pq": lambda base, folder: lance(base, folder, "IvfPq", [(20, 10), (20, 50), (64, 50)]),
    "lance-ivf-rq": lambda base, folder: lance(base, folder, "IvfRq", [(20, 10), (64, 10)]),
    "lance-ivf-sq": lambda base, folder: lance(base, folder, "IvfSq", [(20, 2), (64, 2)]),
    "lance-hnsw-sq": lambda base, folder: lance(base, folder, "HnswSq", [(1, 4), (20, 4)]),
    "usearch": lambda base, folder: usearch(base, folder, "f32"),
    "usearch-f16": lambda base, folder: usearch(base, folder, "f16"),
    "faiss-hnsw": lambda base, folder: faiss(base, folder, "hnsw"),
    "faiss-ivf-pq": lambda base, folder: faiss(base, folder, "ivf-pq"),
    "faiss-ivf-sq8": lambda base, folder: faiss(base, folder, "ivf-sq8"),
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="INDEX", help=", ".join(VARIANTS))
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    base, queries = vectors(options.rows, options.dim, options.queries)
    truth, seconds = exact(base, queries)
    print(f"{options.rows:,} x {options.dim} float32 ({base.nbytes / 1e9:.2f} GB), {os.cpu_count()} cores\n")
    print("| Index | recall@10 | p50 ms | p99 ms | build s | on disk MB |\n|---|---|---|---|---|---|")
    print(
        f"| exact (numpy) | 1 | {np.median(seconds) * 1e3:.1f} | {max(seconds) * 1e3:.1f} | | |", flush=True
    )
    for name in options.variants or VARIANTS:
        folder = Path(tempfile.mkdtemp())
        try:
            measure(name, base, queries, truth, folder)
        finally:
            shutil.rmtree(folder)
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def measure(name: str, base: np.ndarray, queries: np.ndarray, truth: np.ndarray, folder: Path) -> None:
    """Builds one index and prints a row for each set of search options."""
    began = time.perf_counter()
    for how, search in VARIANTS[name](base, folder):
        build = f"{time.perf_counter() - began:.0f}" if began else ""
        began = 0.0
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        for query in queries[:20]:
            search(query)
        hits, seconds = 0, []
        for query, wanted in zip(queries, truth, strict=True):
            start = time.perf_counter()
            found = search(query)
            seconds.append(time.perf_counter() - start)
            hits += len(set(found.tolist()) & set(wanted.tolist()))
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        recall = hits / truth.size
        print(f"| {name}, {how} | {recall:.3f} | {p50:.1f} | {p99:.1f} | {build} | {size:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
