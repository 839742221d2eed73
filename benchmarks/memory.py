"""Compares the peak memory of a long run with that of a short one, over the same shards.

    python -m benchmarks.memory

Each run is its own process, with engine and commits; the lengths run in turns. The table shows medians over
the rounds, of the process and of the memory of its children that is not shared.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.common import TINY
from benchmarks.end_to_end import run_side
from benchmarks.pictures import write_shards
from benchmarks.sides import SIDES
from benchmarks.table import machine, print_table

_DISTINCT = 5


def link_shards(folder: Path, into: Path, count: int) -> None:
    """Fills a new folder with `count` shards: hard links to the `_DISTINCT` shards of another folder."""
    into.mkdir()
    for number in range(count):
        for source in folder.glob(f"{number % _DISTINCT:05d}*"):
            (into / f"{number:05d}{source.name[5:]}").hardlink_to(source)


def main() -> None:
    """Runs the lengths in turns and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--shard", type=int, default=1000, help="images in a shard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=[*SIDES], default="engine")
    args = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {images: [] for images in args.images}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        shards = Path(temporary) / "distinct"
        write_shards(shards, _DISTINCT, args.shard)
        for images in args.images:
            link_shards(shards, Path(temporary) / str(images), images // args.shard)
        for _ in range(args.rounds):
            for images, answers in runs.items():
                answer = run_side(args.side, sys.executable, TINY, Path(temporary) / str(images), "")
                print(f"  {images}: {answer}", flush=True)
                if isinstance(answer, str):
                    raise SystemExit(f"The run of {images} images failed: {answer}")
                answers.append(answer)
    print(f"\n{TINY}, {args.shard} images a shard; load {os.getloadavg()[0]:.1f}. {machine()}")
    rows = [["images", "peak MB", "lowest to highest", f"ratio to {args.images[0]:,}", "images/s steady"]]
    base = statistics.median(run["peak_mb"] for run in runs[args.images[0]])
    for images, answers in runs.items():
        peaks = [run["peak_mb"] for run in answers]
        peak, steady = statistics.median(peaks), statistics.median(run["steady"] for run in answers)
        spread = f"{min(peaks):,.0f} to {max(peaks):,.0f}"
        rows.append([f"{images:,}", f"{peak:,.0f}", spread, f"{peak / base:.2f}x", f"{steady:.0f}"])
    print_table(rows)


if __name__ == "__main__":
    main()
