"""Writes shards for benchmarks: JPEGs like photographs, in img2dataset's webdataset layout, in seconds.

A few hundred different images are generated, and the shards repeat them with different keys. Decoding costs
the same for each copy: no decoder caches anything.
"""

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@cache
def jpegs(count: int = 256, width: int = 256, height: int = 256, quality: int = 75) -> list[bytes]:
    """Returns JPEGs with the spectrum of photographs: noise whose amplitude falls with frequency."""
    generator = np.random.default_rng(0)
    fall = 1 / np.maximum(
        1, np.hypot(*np.meshgrid(np.fft.fftfreq(width) * width, np.fft.fftfreq(height) * height))
    )
    encoded = []
    for _ in range(count):
        noise = np.fft.fft2(generator.standard_normal((3, height, width)))
        picture = np.fft.ifft2(noise * fall).real
        picture = 128 + 50 * picture / picture.std()
        pixels = np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=quality)
        encoded.append(out.getvalue())
    return encoded


def write_shards(folder: Path, shards: int, samples: int, pictures: list[bytes] | None = None) -> int:
    """Writes webdataset shards that repeat some images; returns the encoded bytes of all images."""
    pictures = pictures or jpegs()
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard in range(shards):
        keys = [f"{shard:05d}{row:05d}" for row in range(samples)]
        captions = [f"picture {key}" for key in keys]
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row, key in enumerate(keys):
                image = pictures[(shard * samples + row) % len(pictures)]
                total += len(image)
                members = (
                    ("jpg", image),
                    ("txt", captions[row].encode()),
                    ("json", json.dumps({"key": key}).encode()),
                )
                for suffix, data in members:
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        table = pa.table(
            {"url": [f"https://example.com/{key}.jpg" for key in keys], "key": keys, "caption": captions}
        )
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=100)
        stats = {"count": samples, "successes": samples, "failed_to_download": 0, "failed_to_resize": 0}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return total
