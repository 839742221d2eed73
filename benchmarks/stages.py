"""Measures each stage of the engine alone, to find the bottleneck.

    python -m benchmarks.stages [--models ...]

`read` reads the members of tars into memory, `decode` runs the decoders on images in memory, `forward` runs
the model on preloaded tensors, `write` commits finished shards. `whole engine` runs all of them, also with a
contact sheet of 12 images for each shard of 1,000. The stages run in turns. The table shows medians over the
rounds. The slowest stage limits the engine. Where decoding and the model share the cores, as on a CPU, the
limit is `1 / (1 / decode + 1 / forward)`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from benchmarks.common import TINY
from benchmarks.gpu import decode_only, forward_only, random_model, shards_in
from benchmarks.pictures import write_shards
from benchmarks.table import machine, print_table
from boring_assets.assets.contact_sheet import contact_sheet
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import embed_shards
from boring_assets.engine.results import EmbeddedShard, Options
from boring_assets.engine.samples import Shard
from resources.embeddings_io import EmbeddingsIOManager

_CORES = len(os.sched_getaffinity(0))
_PREVIEWS = 12
_STAGES = ("read", "decode", "forward", "write", "whole engine", "with contact sheets")


def read_rate(shards: list[Shard]) -> float:
    """Returns images per second of reading shards, without decoding."""
    limits = Limits()
    start, count = time.perf_counter(), 0
    for shard in shards:
        opened = open_shard(shard, limits, Fetcher(max_bytes=limits.bytes))
        count += sum(1 for _ in opened.images())
        opened.close()
    return count / (time.perf_counter() - start)


def write_rate(shards: list[Shard], dim: int, out: Path) -> float:
    """Returns images per second of committing finished shards, synced to disk."""
    embeddings = EmbeddingsIOManager(output_dir=str(out))
    done = [_finished(shard, dim) for shard in shards]
    start = time.perf_counter()
    for result in done:
        embeddings.commit(result, {})
    return sum(len(result.embedded) for result in done) / (time.perf_counter() - start)


def engine_rate(encoder: Encoder, shards: list[Shard], out: Path, previews: int) -> float:
    """Returns images per second of the whole engine with commits, with or without contact sheets."""
    embeddings = EmbeddingsIOManager(output_dir=str(out))
    options = Options(decode_workers=_CORES, previews=previews)

    def finish(result: EmbeddedShard) -> int:
        embeddings.commit(result, {})
        assert bool(contact_sheet(result)) == bool(previews)
        return len(result.embedded)

    start = time.perf_counter()
    count = sum(cast(int, done) for done in embed_shards(shards, encoder, options, then=finish))
    return count / (time.perf_counter() - start)


def _finished(shard: Shard, dim: int) -> EmbeddedShard:
    limits = Limits()
    opened = open_shard(shard, limits, Fetcher(max_bytes=limits.bytes))
    opened.close()
    count = opened.rows.num_rows
    vectors = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    return EmbeddedShard(
        shard, opened.rows, opened.columns, np.arange(count), vectors, {}, seconds=1.0, image_bytes=0, cut=0
    )


def main() -> None:
    """Measures the stages for each model and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[TINY, "ViT-B-32"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = [["model", *_STAGES, "slowest", "limit with shared cores"]]
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        write_shards(Path(temporary) / "in", 4, 1000)
        shards = shards_in(Path(temporary) / "in")
        for name in args.models:
            encoder = Encoder(load_model(name) if name == TINY else random_model(name))
            rows.append(_measure(name, encoder, shards, Path(temporary) / "out", args.rounds))
    print(f"Images per second of each stage alone; load {os.getloadavg()[0]:.1f}. {machine()}")
    print_table(rows)


def _measure(name: str, encoder: Encoder, shards: list[Shard], out: Path, rounds: int) -> list[str]:
    stages: dict[str, Callable[[], float]] = {
        "read": lambda: read_rate(shards),
        "decode": lambda: decode_only(encoder.model.preprocess, _CORES, 3),
        "forward": lambda: forward_only(encoder, 5),
        "write": lambda: write_rate(shards, encoder.dim, out),
    }
    whole = {
        "whole engine": lambda: engine_rate(encoder, shards, out, 0),
        "with contact sheets": lambda: engine_rate(encoder, shards, out, _PREVIEWS),
    }
    rates: dict[str, list[float]] = {stage: [] for stage in stages | whole}
    for _ in range(rounds):
        for stage, measure in (stages | whole).items():
            rates[stage].append(measure())
    middle = {stage: statistics.median(values) for stage, values in rates.items()}
    limit = 1 / (1 / middle["decode"] + 1 / middle["forward"])
    shared = f"{limit:,.1f}" if encoder.device.type == "cpu" else ""
    return [name, *(f"{rate:,.1f}" for rate in middle.values()), min(stages, key=lambda s: middle[s]), shared]


if __name__ == "__main__":
    main()
