"""The CPU's work for each image: reading, decoding, filling batches, writing. It needs no GPU.

    python -m benchmarks.host [--workers 1 2 ...] [--json]

The engine and its commits run on default settings, as on a CUDA machine, before a device that answers at
once. The columns:

    CPU us       microseconds of processor time for an image, in all threads and processes
    libjpeg us   the same of libjpeg-turbo alone, on the same images in as many threads
    ratio        the one over the other
    read ...     parts of `CPU us`, sampled, so their sum is somewhat less; with processes (more than four
                 workers) `processes` is their share, and the others are those of the process of the model
    copies       times that the CPU copies an image's pixels after decoding
    peak MB      memory of the process, and what its children have for themselves

Shown are medians over the rounds, after a first round that is not counted. `--json` measures one number of
workers only, by default one for each core, and ends in one line of JSON.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import simplejpeg

from benchmarks.common import CORES
from benchmarks.gpu import shards_in
from benchmarks.pictures import jpegs, write_shards
from benchmarks.side import MemoryWatch
from benchmarks.table import machine, print_table
from boring_assets.engine.decoding.arena import Arena
from boring_assets.engine.decoding.decode import Preprocess
from boring_assets.engine.decoding.decoders import Target
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import embed_shards
from boring_assets.engine.reader_processes import THREADS
from boring_assets.engine.samples import Shard
from boring_assets.settings import Settings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager, Written

_SIDE = 256
_DIM = 512
_BATCH = 1024
_SHARD = 1000
# The part of the engine that a thread belongs to, by the start of its name.
_PARTS = {
    "read": "read",
    "open": "read",
    "reader-process": "read",
    "decode": "decode",
    "encoder": "batches",
    "finish": "write",
    "check": "write",
}
_SAMPLE_SECONDS = 0.05


class InstantDevice:
    """Stands for the encoder of a CUDA device: it takes batches of pixels and answers at once.

    A CUDA device copies the pixels from where they are without the CPU; so nothing is done with them here.

    Attributes:
        images: How many images it was given.
        copied: How many of them were not in the memory that they were decoded into.
    """

    dim = _DIM
    batch_size = _BATCH
    in_flight = 2
    precision = "fp32"

    def __init__(self) -> None:
        """Allocates the answers."""

        class _Model:
            name, pretrained, digest = "instant", "", ""
            preprocess = Preprocess(224, 224)

        self.model = _Model()
        self._vectors = np.zeros((_BATCH, _DIM), np.float32)
        self._vectors[:, 0] = 1
        self._free: dict[int, list[bytearray]] = defaultdict(list)
        self._memory: list[tuple[int, int]] = []
        self.images = self.copied = 0

    def target(self) -> Target:
        """Images keep their size, as for a CUDA device."""
        return Target(self.model.preprocess, keep_size=True, new_buffer=self._new_buffer)

    def _new_buffer(self, count: int) -> Any:
        """Returns memory that is used again, in sizes of powers of two, as torch does with pinned memory."""
        import torch

        size = 1 << (count - 1).bit_length()
        try:
            memory = self._free[size].pop()
        except IndexError:
            memory = bytearray(size)
            self._remember(np.frombuffer(memory, np.uint8))
        view = np.frombuffer(memory, np.uint8)
        weakref.finalize(view, self._free[size].append, memory).atexit = False
        return torch.from_numpy(view)[:count]

    def pin(self, arena: Arena) -> None:
        """Notes shared memory that pixels may be in."""
        self._remember(arena.memory)

    def _remember(self, memory: np.ndarray) -> None:
        self._memory.append((memory.ctypes.data, memory.ctypes.data + memory.nbytes))

    def submit(self, pieces: list[Pixels]) -> "InstantDevice.Answer":
        """Takes a batch."""
        for piece in pieces:
            at = piece.data.data_ptr()
            self.images += len(piece)
            self.copied += len(piece) * (not any(start <= at < end for start, end in self._memory))
        return self.Answer(self._vectors[: sum(map(len, pieces))])

    class Answer:
        """A batch's embeddings."""

        def __init__(self, vectors: np.ndarray) -> None:
            self._vectors = vectors

        def result(self) -> np.ndarray:
            """Returns them at once."""
            return self._vectors


class CpuTimes:
    """Samples the processor time of this process's threads, and of its children.

    Attributes:
        parts: Seconds of each part of the engine.
        children: Seconds of the children.
        own: Seconds that the sampling itself took.
    """

    def __init__(self, *, with_children: bool) -> None:
        """Looking for children costs more than all else here, so it is left out where there are none."""
        self._with_children = with_children

    def __enter__(self) -> "CpuTimes":
        self._threads: dict[tuple[str, int], float] = {}
        self._children: dict[int, float] = {}
        self._before = {child.pid: _cpu(child) for child in psutil.Process().children(recursive=True)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.parts: dict[str, float] = defaultdict(float)
        for (name, _thread), seconds in self._threads.items():
            part = next((part for start, part in _PARTS.items() if name.startswith(start)), "")
            self.parts[part] += seconds
        self.children = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._children.items())

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(_SAMPLE_SECONDS):
            names = {thread.native_id: thread.name for thread in threading.enumerate()}
            for thread in process.threads():
                if name := names.get(thread.id):
                    self._threads[name, thread.id] = thread.user_time + thread.system_time
            for child in process.children(recursive=True) if self._with_children else ():
                with suppress(psutil.Error):
                    self._children[child.pid] = _cpu(child)
        self.own = time.thread_time()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def engine(device: InstantDevice, shards: list[Shard], workers: int, out: Path) -> dict[str, float]:
    """Runs the whole host side once; returns microseconds for each image by part, and images a second."""
    options = ClipResource.from_settings(Settings(input_dir=str(out), device="cpu")).options()
    options = replace(options, decode_workers=workers)
    commit = partial(EmbeddingsIOManager(output_dir=str(out)).commit, facts={})
    start, cpu = time.perf_counter(), time.process_time()
    with CpuTimes(with_children=workers > THREADS) as times:
        for result in embed_shards(shards, cast(Encoder, device), options, then=commit):
            assert isinstance(result, Written), result
    seconds = time.perf_counter() - start
    images = _SHARD * len(shards)
    spent = time.process_time() - cpu - times.own + times.children
    parts = {part: times.parts[part] for part in ("read", "decode", "batches", "write")}
    return {
        "cpu_us_per_image": spent / images * 1e6,
        **{f"{part}_us": each / images * 1e6 for part, each in parts.items()},
        "processes_us": times.children / images * 1e6,
        "images_per_second": images / seconds,
    }


def libjpeg_us(pictures: list[bytes], images: int, threads: int) -> float:
    """Returns microseconds of processor time that libjpeg-turbo takes for an image."""

    def decode(first: int) -> float:
        buffer = np.empty((_SIDE, _SIDE, 3), np.uint8)
        start = time.thread_time()
        for number in range(first, images, threads):
            simplejpeg.decode_jpeg(pictures[number % len(pictures)], buffer=buffer)
        return time.thread_time() - start

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, range(threads))) / images * 1e6


def measure(shards: list[Shard], workers: int, rounds: int, out: Path) -> dict[str, float]:
    """Measures one number of workers, in rounds that take turns with libjpeg-turbo alone."""
    device, pictures = InstantDevice(), jpegs()
    found: dict[str, list[float]] = defaultdict(list)
    with MemoryWatch() as memory:  # only in the round that is not counted: watching takes time
        engine(device, shards, workers, out / f"{workers}-warm")
    for number in range(rounds):
        one = engine(device, shards, workers, out / f"{workers}-{number}")
        one["jpeg_us_per_image"] = libjpeg_us(pictures, _SHARD * len(shards), min(workers, CORES))
        one["ratio"] = one["cpu_us_per_image"] / one["jpeg_us_per_image"]
        for name, value in one.items():
            found[name].append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "workers": workers,
        **{name: round(value, 3) for name, value in medians.items()},
        "copies": round(device.copied / device.images, 3),
        "peak_mb": round(memory.peak / 2**20),
    }


_COLUMNS = {
    "workers": "workers", "cpu_us_per_image": "CPU us", "jpeg_us_per_image": "libjpeg us", "ratio": "ratio",
    "read_us": "read", "decode_us": "decode", "batches_us": "batches", "write_us": "write",
    "processes_us": "processes", "images_per_second": "images/s", "copies": "copies", "peak_mb": "peak MB",
}  # fmt: skip


def main() -> None:
    """Measures each number of workers, and prints a table or a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=None, help="decoding threads")
    parser.add_argument("--images", type=int, default=2000, help=f"rounded up to shards of {_SHARD}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end in one line of JSON")
    args = parser.parse_args()
    several = [count for count in (1, 2, 4, 8, 16) if count <= CORES]
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        write_shards(Path(temporary) / "in", -(-args.images // _SHARD), _SHARD, jpegs(256, _SIDE, _SIDE))
        shards = shards_in(Path(temporary) / "in")
        for workers in args.workers or ([CORES] if args.json else several):
            rows.append(measure(shards, workers, args.rounds, Path(temporary)))
    if args.json:
        print(json.dumps(rows[-1]))
        return
    print(f"{args.images:,} JPEGs of {_SIDE} x {_SIDE} in tars on a local disk. {machine()}")
    cells = [[f"{row[name]:,.6g}" for name in _COLUMNS] for row in rows]
    print_table([list(_COLUMNS.values()), *cells])


if __name__ == "__main__":
    main()
