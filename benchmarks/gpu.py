"""Measures the engine on a CUDA machine, its ceilings, and a torch DataLoader; needs no network.

    python -m benchmarks.gpu --out gpu.json

For each model, with random weights, it measures the model alone on preloaded tensors; copy, resize and model
on decoded images; libjpeg-turbo alone on all cores; the whole engine on tar shards; and a DataLoader with
open_clip's preprocess. Without CUDA it runs a smaller case on the CPU.
"""

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import simplejpeg
from PIL import Image

from benchmarks.pictures import jpegs, write_shards
from boring_assets.engine.decoding.decode import Limits, Preprocess
from boring_assets.engine.decoding.decoders import Decoders, Target, decode_chunk, use_one_core
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import ClipModel
from boring_assets.engine.pipeline import EmbeddedShard, Options, Progress, embed_shards
from boring_assets.engine.reader import CHUNK_IMAGES
from boring_assets.engine.reader_processes import THREADS, start_server
from boring_assets.engine.samples import Shard


def random_model(name: str) -> ClipModel:
    """A model of open_clip's zoo with fresh random weights."""
    import open_clip

    module = open_clip.create_model(name, pretrained_text=False).eval().requires_grad_(False)
    return ClipModel(name, "random", "", module, Preprocess.of(module.visual.preprocess_cfg))


def shards_in(folder: Path) -> list[Shard]:
    """The shards of a local folder."""
    fs = fsspec.filesystem("file")
    return [
        Shard(path.stem, path.as_uri(), fs, str(path), str(folder), "1")
        for path in sorted(folder.glob("*.parquet"))
    ]


def forward_only(encoder: Encoder, seconds: float) -> float:
    """Images a second of the model on tensors that are on the device already, as the engine runs it."""
    import torch

    if encoder.device.type == "cpu":
        blank = encoder._blank(encoder.batch_size)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds or not count:
            encoder._forward(blank)
            count += encoder.batch_size
        return count / (time.perf_counter() - start)
    graph = encoder._captured()
    rates: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(rates) < 3:
        torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(5):
            graph._graph.replay()
        torch.cuda.synchronize()
        rates.append(5 * encoder.batch_size / (time.perf_counter() - before))
    return statistics.median(rates)


def device_only(encoder: Encoder, seconds: float) -> float:
    """Images a second of the encoder on decoded images in host memory: copy, resize and forward."""
    target, pictures = encoder.target(), jpegs()
    decoders = Decoders(1, target, Limits())
    images = [pictures[number % len(pictures)] for number in range(encoder.batch_size)]
    pixels = decode_chunk(images, [decoders.plan(image) for image in images], target, Limits()).pixels
    encoder.submit([pixels]).result()
    pending: deque[Any] = deque()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        pending.append(encoder.submit([pixels]))
        if len(pending) > encoder.in_flight:
            done += len(pending.popleft().result())
    done += sum(len(batch.result()) for batch in pending)
    return done / (time.perf_counter() - start)


def libjpeg_only(threads: int, seconds: float) -> float:
    """Images a second of libjpeg-turbo alone, in threads."""
    pictures, end = jpegs(), time.perf_counter() + seconds

    def decode(_: int) -> int:
        buffer, done = np.empty((256, 256, 3), np.uint8), 0
        while time.perf_counter() < end:
            simplejpeg.decode_jpeg(pictures[done % len(pictures)], buffer=buffer)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, range(threads))) / seconds


def end_to_end(encoder: Encoder, shards: list[Shard], threads: int) -> dict[str, float]:
    """Measures the engine over shards on disk; the steady rate is without the first fifth."""
    progress, stop = Progress(), threading.Event()
    marks: list[tuple[float, int]] = []

    def watch() -> None:
        while not stop.wait(0.02):
            marks.append((time.perf_counter(), progress.embedded))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    options = Options(decode_workers=threads)
    for result in embed_shards(shards, encoder, options, progress=progress):
        assert isinstance(result, EmbeddedShard), result.error
    seconds, total = time.perf_counter() - start, progress.embedded
    stop.set()
    watcher.join()
    marks.append((start + seconds, progress.embedded))
    early = next(mark for mark in marks if mark[1] >= total / 5)
    late = next(mark for mark in marks if mark[1] >= total * 0.95)
    first = next((when for when, done in marks if done), start) - start
    steady = (late[1] - early[1]) / max(late[0] - early[0], 1e-9)
    return {
        "images": total, "seconds": seconds, "whole": total / seconds, "steady": steady,
        "first_batch_seconds": first,
        "starved_share": progress.starved_seconds / seconds, "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip


def decode_only(numbers: Preprocess, workers: int, seconds: float = 4.0) -> float:
    """Returns images per second of the decoders alone, in threads of one process, with the resize."""
    pictures = jpegs()
    decoders = Decoders(workers, Target(numbers), Limits())
    chunks = [pictures[i : i + CHUNK_IMAGES] for i in range(0, len(pictures), CHUNK_IMAGES)]
    sizes = [[decoders.plan(picture) for picture in chunk] for chunk in chunks]
    pending: deque[Any] = deque()
    done, number, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        pending.append(decoders.submit(chunks[number % len(chunks)], sizes[number % len(chunks)]))
        number += 1
        if len(pending) > 4 * workers:
            done += len(pending.popleft().result().answers)
    rate = done / (time.perf_counter() - start)
    decoders.close(cancel=True)
    return rate


def data_loader(encoder: Encoder, batches: int, workers: int) -> float:
    """Returns images per second of a DataLoader with open_clip's preprocess, and the same model."""
    import torch
    from open_clip.transform import image_transform

    numbers = encoder.model.preprocess
    size = (numbers.height, numbers.width)
    preprocess = image_transform(
        size[0] if size[0] == size[1] else size, is_train=False, mean=numbers.mean, std=numbers.std,
        resize_mode=numbers.resize_mode, interpolation=numbers.interpolation,
    )  # fmt: skip
    pictures = jpegs()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return batches * encoder.batch_size

        def __getitem__(self, index: int) -> Any:
            return preprocess(Image.open(io.BytesIO(pictures[index % len(pictures)])))

    loader = torch.utils.data.DataLoader(
        Pictures(),
        encoder.batch_size,
        num_workers=workers,
        pin_memory=encoder.device.type == "cuda",
        prefetch_factor=4,
    )
    done, start = 0, 0.0
    with torch.inference_mode():
        for number, images in enumerate(loader):
            features = encoder.model.module.encode_image(
                images.to(encoder.device, encoder._dtype, non_blocking=True)
            )
            torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
            if number == 1:
                start = time.perf_counter()
            elif number > 1:
                done += len(images)
    return done / (time.perf_counter() - start)


class GpuWatch:
    """Samples the utilization and the memory of the device by NVML, if it is available."""

    def __enter__(self) -> "GpuWatch":
        self.busy: list[int] = []
        self.memory = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:
            return
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        while not self._stop.wait(0.1):
            self.busy.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            self.memory = max(self.memory, pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def bench_model(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one model: forward only, end to end, DataLoader."""
    start = time.perf_counter()
    encoder = Encoder(random_model(name), batch_size=args.batch_size or "auto")
    row: dict[str, Any] = {
        "model": name, "device": str(encoder.device), "precision": encoder.precision,
        "batch": encoder.batch_size,
        "load_seconds": time.perf_counter() - start,
    }  # fmt: skip
    use_one_core()
    row["forward_only"] = forward_only(encoder, 2)
    row["device_only"] = device_only(encoder, 2)
    row["libjpeg_only"] = libjpeg_only(args.workers, 2)
    shards = shards_in(folder)
    rate = min(row["device_only"], row["libjpeg_only"])
    enough = max(2, int(rate * args.seconds / args.samples) + 1)
    with GpuWatch() as watch:
        row["end_to_end"] = end_to_end(encoder, (shards * (enough // len(shards) + 1))[:enough], args.workers)
    busy = watch.busy[len(watch.busy) // 4 : -2] or [0]
    row["gpu_busy"] = statistics.mean(busy) / 100
    row["gpu_memory_mb"] = watch.memory / 2**20
    row["host_memory_mb"] = psutil.Process().memory_info().rss / 2**20
    row["over_forward"] = row["end_to_end"]["steady"] / row["forward_only"]
    if not args.no_loader:
        batches = 2 + max(4, int(min(rate, 400 * (os.cpu_count() or 1)) * 10 / encoder.batch_size))
        row["data_loader"] = data_loader(encoder, batches, os.cpu_count() or 1)
        row["over_loader"] = row["end_to_end"]["steady"] / row["data_loader"]
    return row


def main() -> None:
    """Measures all models and prints a table."""
    import torch

    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["ViT-B-32", "ViT-L-14", "ViT-SO400M-14-SigLIP2"][: None if cuda else 1],
    )
    parser.add_argument("--shards", type=int, default=8 if cuda else 2)
    parser.add_argument("--samples", type=int, default=5000 if cuda else 200)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-loader", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    if args.workers > THREADS:
        start_server()  # as a run does while it loads the model
    try:
        size = write_shards(folder, args.shards, args.samples)
        print(
            f"{args.shards} shards of {args.samples} images of {size / args.shards / args.samples:.0f} bytes"
        )
        rows = []
        for name in args.models:
            rows.append(bench_model(name, folder, args))
            print(json.dumps(rows[-1]), flush=True)
            torch.cuda.empty_cache()
    finally:
        shutil.rmtree(folder)
    device = torch.cuda.get_device_name() if cuda else platform.processor()
    report = {"device": device, "cores": os.cpu_count(), "torch": torch.__version__, "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(report, indent=2))
    print(f"\n{device}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(
        f"{'model':<24}{'batch':>6}{'forward':>9}{'device':>9}{'libjpeg':>9}{'steady':>9}{'whole':>9}"
        f"{'share':>7}{'loader':>9}{'busy':>6}"
    )
    for row in rows:
        e2e = row["end_to_end"]
        print(
            f"{row['model']:<24}{row['batch']:>6}{row['forward_only']:>9.0f}{row['device_only']:>9.0f}"
            f"{row['libjpeg_only']:>9.0f}{e2e['steady']:>9.0f}{e2e['whole']:>9.0f}"
            f"{row['over_forward']:>7.2f}{row.get('data_loader', 0):>9.0f}{row['gpu_busy']:>6.2f}"
        )


if __name__ == "__main__":
    main()
