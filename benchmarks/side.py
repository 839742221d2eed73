"""Runs one side of the end-to-end comparison, in its own process.

    python -m benchmarks.side SIDE MODEL FOLDER [--checkpoint FILE]

FOLDER holds shards in img2dataset's webdataset layout, MODEL is an open_clip model name or `boring-tiny`.
Prints one JSON line: `first` (seconds from the start of the process to its first batch), `whole` (seconds
until the output is written), `images`, `steady` (images per second from the first batch to the last) and
`peak_mb` (memory of the process, and memory of its children that is not shared). The ceilings `forward only`
and `decode only` have only `steady`.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks import sides
from benchmarks.common import Meter, Model, count_images

# Set by the caller; without it, the start of the Python process is not included.
STARTED = "BENCHMARK_STARTED"
_SAMPLE_SECONDS = 0.2


class MemoryWatch:
    """Samples the memory of this process and its children."""

    def __enter__(self) -> "MemoryWatch":
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(_SAMPLE_SECONDS):
            total = me.memory_info().rss
            for child in me.children(recursive=True):
                # Memory that a forked child shares with its parent is counted once, for the parent.
                with suppress(psutil.Error):
                    total += child.memory_full_info().uss
            self.peak = max(self.peak, total)


def measure(side: str, model: Model, folder: Path) -> dict[str, float]:
    """Runs one side of `sides.SIDES` or `sides.CEILINGS`; returns the content of the JSON line.

    Raises:
        RuntimeError: The side embedded nothing, or lost images.
    """
    started = float(os.environ.get(STARTED, time.time()))
    if side in sides.CEILINGS:
        return {"steady": sides.CEILINGS[side](model)}
    meter = Meter()
    with MemoryWatch() as memory, tempfile.TemporaryDirectory(prefix="bench-out-") as out:
        sides.SIDES[side](model, folder, Path(out), meter)
        whole = time.time() - started
    marks, images = meter.marks, count_images(folder)
    if not marks or marks[-1][1] != images:
        raise RuntimeError(f"{side} embedded {marks[-1][1] if marks else 0} of {images} images.")
    (first, early), (last, late) = marks[0], marks[-1]
    return {
        "first": first - started,
        "whole": whole,
        "images": images,
        "steady": (late - early) / (last - first) if last > first else float("nan"),
        "peak_mb": memory.peak / 2**20,
    }


def main() -> None:
    """Runs one side and prints its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", choices=[*sides.SIDES, *sides.CEILINGS])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="", help="file with the model's weights")
    args = parser.parse_args()
    numbers = measure(args.side, Model(args.model, args.checkpoint), args.folder)
    print(f"\n{json.dumps(numbers)}", flush=True)  # some sides leave a line unfinished


if __name__ == "__main__":
    main()
