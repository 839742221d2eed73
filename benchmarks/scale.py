"""Measures the engine with different shard sizes, decode workers and storages.

    python -m benchmarks.scale [--apart]

It compares one large shard with many small ones, 1 to 8 decode workers, and the local disk with SeaweedFS on
this machine, also through a proxy that holds each answer back for 30 ms. A side reads, embeds and commits
with the small model, which is loaded before. The sides run in turns. The table shows medians over the rounds,
also of the ratio within a round, with the processor seconds of this process and of its children (SeaweedFS,
the proxy, decoding processes). With `--apart`, the engine has one core, and SeaweedFS and the proxy have the
others, as on a machine of their own.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import fsspec.config
import psutil

from benchmarks.common import TINY
from benchmarks.delay import delayed
from benchmarks.gpu import decode_only
from benchmarks.pictures import write_shards
from benchmarks.table import machine, print_table
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import EmbeddedShard, Options, embed_shards
from boring_assets.engine.samples import Shard
from boring_assets.storage.root import open_root
from resources.embeddings_io import EmbeddingsIOManager
from tests.seaweed import Seaweed

_DELAY_SECONDS = 0.03
_CORES = len(os.sched_getaffinity(0))


def shards_below(uri: str) -> list[Shard]:
    """Returns the shards directly below a folder or a bucket prefix."""
    root = open_root(uri)
    paths = sorted(path for path in root.fs.ls(root.path, detail=False) if path.endswith(".parquet"))
    return [
        Shard(Path(path).stem, root.fs.unstrip_protocol(path), root.fs, path, root.path, "1")
        for path in paths
    ]


def job(encoder: Encoder, source: str, out: str, workers: int) -> float:
    """Embeds and commits every shard of a source; returns images per second, the listing included."""
    embeddings = EmbeddingsIOManager(output_dir=f"{out}/{uuid.uuid4().hex}")
    start, count = time.perf_counter(), 0

    def commit(result: EmbeddedShard) -> int:
        embeddings.commit(result, {})
        return len(result.embedded)

    for embedded in embed_shards(shards_below(source), encoder, Options(decode_workers=workers), then=commit):
        assert isinstance(embedded, int), embedded
        count += embedded
    return count / (time.perf_counter() - start)


def _cpu_seconds() -> tuple[float, float]:
    """Returns the processor seconds so far of this process, and of its children."""
    me = psutil.Process()
    used = [me.cpu_times(), *(child.cpu_times() for child in me.children(recursive=True))]
    own, *others = (times.user + times.system for times in used)
    return own, sum(others)


def _use_cores(cores: list[int]) -> None:
    """Moves every thread of this process to some cores; threads and processes started later inherit them."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def main() -> None:
    """Runs all sides in turns and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--apart", action="store_true", help="the servers have cores of their own")
    args = parser.parse_args()
    workers = 1 if args.apart else _CORES
    first, *rest = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        if args.apart:
            _use_cores(rest)  # which the servers inherit
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        one, many, out = str(folder / "one"), str(folder / "many"), str(folder / "out")
        write_shards(Path(one), 1, args.images)
        write_shards(Path(many), 40, args.images // 40)
        server = stack.enter_context(Seaweed(folder / "seaweed"))
        os.environ |= server.env
        bucket = server.new_prefix()
        proxy = stack.enter_context(delayed(server.endpoint.removeprefix("http://"), _DELAY_SECONDS))
        if args.apart:
            _use_cores([first])
        encoder = Encoder(load_model(TINY))
        numbers = encoder.model.preprocess

        def distant(source: str) -> float:
            fsspec.config.conf["s3"] = {"endpoint_url": f"http://{proxy}"}
            try:
                return job(encoder, source, f"{bucket}/out", workers)
            finally:
                del fsspec.config.conf["s3"]

        server.filesystem().put(many, f"{bucket}/many", recursive=True)
        server.filesystem().put(one, f"{bucket}/one", recursive=True)
        sides: dict[str, Callable[[], float]] = {
            "1 large shard": partial(job, encoder, one, out, workers),
            "1 large shard, SeaweedFS": partial(job, encoder, f"{bucket}/one", f"{bucket}/out", workers),
            "1 large shard, SeaweedFS, 30 ms": partial(distant, f"{bucket}/one"),
            "40 small shards": partial(job, encoder, many, out, workers),
            "40 small shards, SeaweedFS": partial(job, encoder, f"{bucket}/many", f"{bucket}/out", workers),
            "40 small shards, SeaweedFS, 30 ms": partial(distant, f"{bucket}/many"),
        }
        sides |= {f"{count} decode workers": partial(job, encoder, one, out, count) for count in args.workers}
        sides |= {
            f"decode only, {count} workers": partial(decode_only, numbers, count, 3) for count in args.workers
        }
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, run in sides.items():
                before = _cpu_seconds()
                rate = run()
                ours, others = (late - early for early, late in zip(before, _cpu_seconds(), strict=True))
                measured[name].append((rate, ours, others))
                shutil.rmtree(out, ignore_errors=True)
    print(f"{TINY}, {args.images} images; load {os.getloadavg()[0]:.1f}. {machine()}")
    middle = {
        name: [statistics.median(values) for values in zip(*runs, strict=True)]
        for name, runs in measured.items()
    }
    base = [run[0] for run in measured["1 large shard"]]
    rows = [["side", "images/s", "lowest to highest", "ratio to 1 large shard", "CPU s", "CPU s of children"]]
    for name, (rate, ours, others) in middle.items():
        rates = [run[0] for run in measured[name]]
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        ratio = statistics.median(one / local for one, local in zip(rates, base, strict=True))
        rows.append([name, f"{rate:,.0f}", spread, f"{ratio:.2f}x", f"{ours:.1f}", f"{others:.1f}"])
    print_table(rows)


if __name__ == "__main__":
    main()
