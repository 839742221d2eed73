"""Where an image is best resized: microseconds for an image on the CPU and on a CUDA device, by size.

    python -m benchmarks.resize

`decode` and `decode, resize` are processor time on one core; `copy` and `resize` are the device's, in batches
of as many images as 1,024 of 256 x 256 have pixels. Without CUDA those are left out.
"""

import time
from collections.abc import Callable

import numpy as np
import simplejpeg

from benchmarks.pictures import jpegs
from benchmarks.table import machine, print_table
from boring_assets.engine.decoding.decode import Preprocess, decode
from boring_assets.engine.decoding.decoders import use_one_core
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.model.resize import DeviceResize

SIDES = (256, 384, 512, 768, 1024)
_ROUNDS = 5
_PREPROCESS = Preprocess(224, 224)


def on_cpu(side: int, images: int = 16) -> tuple[float, float]:
    """Returns microseconds of decoding alone, and of decoding with the resize; the best of some rounds."""
    pictures, buffer = jpegs(images, side, side), np.empty((side, side, 3), np.uint8)

    def best(work: Callable[[bytes], object]) -> float:
        seconds = []
        for _ in range(_ROUNDS):
            start = time.thread_time()
            for picture in pictures:
                work(picture)
            seconds.append(time.thread_time() - start)
        return min(seconds) / images * 1e6

    limits = Limits()
    return (
        best(lambda picture: simplejpeg.decode_jpeg(picture, buffer=buffer)),
        best(lambda picture: decode(picture, _PREPROCESS, limits)),
    )


def on_device(side: int) -> tuple[float, float]:
    """Returns microseconds of the copy to the device, and of the resize there."""
    import torch

    images = 1024 * 256 * 256 // side**2
    host = torch.randint(0, 256, (images * side * side * 3,), dtype=torch.uint8).pin_memory()
    pixels = host.to("cuda")
    out = torch.zeros((images, 224, 224, 3), dtype=torch.uint8, device="cuda")
    resize = DeviceResize(_PREPROCESS, out.device)

    def mean(work: Callable[[], object]) -> float:
        work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_ROUNDS):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / _ROUNDS / images * 1e6

    return (
        mean(lambda: pixels.copy_(host, non_blocking=True)),
        mean(lambda: resize(pixels, [(side, side)] * images, out)),
    )


def main() -> None:
    """Prints a row for each size."""
    import torch

    use_one_core()
    rows = [["size", "decode", "decode, resize", "ratio", "copy", "resize"]]
    for side in SIDES:
        alone, both = on_cpu(side)
        device = [f"{one:.1f}" for one in on_device(side)] if torch.cuda.is_available() else ["", ""]
        rows.append([f"{side} x {side}", f"{alone:,.0f}", f"{both:,.0f}", f"{both / alone:.2f}", *device])
    print(f"Microseconds for an image. {machine()}")
    print_table(rows)


if __name__ == "__main__":
    main()
