"""Sample shards of generated pictures, laid out as img2dataset writes them.

The layouts, columns, types and the order of writing are those of img2dataset 1.47. Equal arguments give equal
bytes.
"""

import hashlib
import io
import json
import math
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.storage.errors import storage_errors
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root
from boring_assets.tiny.pictures import all_combinations, draw

Layout = Literal["webdataset", "files", "parquet"]
EncodeFormat = Literal["jpg", "png", "webp"]

ROW_GROUP = 100
"""Rows in a row group; img2dataset's buffer."""

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95},
    "png": {"format": "PNG", "compress_level": 1},
    "webp": {"format": "WEBP", "quality": 95, "method": 0},
}
_HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not here any more.</body></html>\n"
_NOT_FOUND = "HTTP Error 404: Not Found"
_TIME = 1_700_000_000.25
"""Seconds since 1970, for tar members and stats: a fixed one, so that equal arguments give equal bytes."""

_BREAKS: tuple[Callable[[bytes], bytes] | None, ...] = (
    None,  # failed to download: no image at all
    lambda image: image[: len(image) // 2],
    lambda image: _HTML,
    lambda image: b"",
)
"""How the images of broken samples are damaged, in turn."""


@dataclass(frozen=True)
class _Row:
    """A row of a shard, its fields in img2dataset's column order."""

    caption: str
    url: str
    key: str
    status: str = "success"
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None


_SCHEMA = pa.schema(
    [(field.name, pa.string() if "str" in str(field.type) else pa.int32()) for field in fields(_Row)]
)


def write_sample_data(
    root: Path,
    num_shards: int,
    samples_per_shard: int,
    layout: Layout,
    *,
    encode_format: EncodeFormat = "jpg",
    broken: int = 0,
    image_size: int = 256,
    seed: int = 0,
    first_shard: int = 0,
) -> list[Path]:
    """Writes complete shards, and returns their parquet files; shards that exist are replaced.

    Broken samples take turns: a row that failed to download, then, under status `success`, a truncated
    image, an HTML page, and an empty image.

    Args:
        root: The folder to write to; created where missing.
        num_shards: How many shards.
        samples_per_shard: Rows in each shard.
        layout: Where the images go: `webdataset` (a tar beside the parquet), `files` (a folder beside
            it) or `parquet` (a binary column named after the format).
        encode_format: Format of the images.
        broken: How many samples of each shard are broken on purpose.
        image_size: Width and height of the images in pixels.
        seed: Other seeds give other pictures.
        first_shard: Number of the first shard, to add to an earlier call's.
    """
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(first_shard, first_shard + num_shards):
        name = f"{shard:05d}"
        stats = root / f"{name}_stats.json"
        stats.unlink(missing_ok=True)  # it marks a shard as complete
        samples = list(_samples(shard, samples_per_shard, encode_format, broken, image_size, seed))
        if layout == "webdataset":
            _write_tar(root / f"{name}.tar", samples, encode_format)
        elif layout == "files":
            _write_folder(root / name, samples, encode_format)
        paths.append(root / f"{name}.parquet")
        _write_parquet(paths[-1], samples, encode_format if layout == "parquet" else None)
        stats.write_text(json.dumps(_stats(samples), indent=4))
    return paths


def upload_sample_data(
    root: Root, num_shards: int, samples_per_shard: int, layout: Layout, first_shard: int = 0, **options: Any
) -> None:
    """Writes the shards of `write_sample_data` below a URI, each through a temporary folder.

    Raises:
        StorageError: The URI cannot be written to.
    """
    for number in range(first_shard, first_shard + num_shards):
        with tempfile.TemporaryDirectory() as folder:
            write_sample_data(Path(folder), 1, samples_per_shard, layout, first_shard=number, **options)
            stats = f"{number:05d}_stats.json"
            with storage_errors(f"{root.uri}/{stats}", "write"):
                if root.fs.exists(f"{root.path}/{stats}"):  # it marks a shard as complete
                    root.fs.rm_file(f"{root.path}/{stats}")
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != stats)
            for path in (*files, Path(folder, stats)):
                write_bytes(root, path.relative_to(folder).as_posix(), path.read_bytes())


def _samples(
    shard: int, count: int, encode_format: EncodeFormat, broken: int, image_size: int, seed: int
) -> Iterator[tuple[_Row, bytes | None]]:
    """Rows with their images, in the mixed order in which downloads end."""
    combinations = all_combinations()
    wanted = np.random.default_rng(seed).permutation(len(combinations))  # no caption twice until all are used
    rng = np.random.default_rng((seed, shard))
    breaks = {int(i): _BREAKS[turn % len(_BREAKS)] for turn, i in enumerate(rng.permutation(count)[:broken])}
    digits = max(1, math.ceil(math.log10(count)))
    for i in rng.permutation(count).tolist():
        combination = combinations[wanted[(shard * count + i) % len(wanted)]]
        key = f"{shard * 10**digits + i:0{5 + digits}d}"
        url = f"https://example.com/pictures/{seed}/{key}.{encode_format}"
        if i in breaks and breaks[i] is None:
            yield _Row(combination.caption, url, key, "failed_to_download", _NOT_FOUND), None
            continue
        encoded = io.BytesIO()
        draw(combination, image_size, (seed, shard, i)).save(encoded, **_SAVE_OPTIONS[encode_format])
        image = encoded.getvalue()
        # As with img2dataset, the digest is of the downloaded bytes, not of the stored ones.
        digest = hashlib.sha256(image).hexdigest()
        size = image_size
        row = _Row(combination.caption, url, key, "success", None, size, size, size, size, "{}", digest)
        breaking = breaks.get(i)
        yield row, breaking(image) if breaking else image


def _members(row: _Row, image: bytes, encode_format: str) -> list[tuple[str, bytes]]:
    """The files of a downloaded sample, in the order of their names."""
    about = json.dumps(asdict(row), indent=4).encode()
    files = {encode_format: image, "json": about, "txt": row.caption.encode()}
    return [(f"{row.key}.{extension}", files[extension]) for extension in sorted(files)]


def _write_tar(path: Path, samples: list[tuple[_Row, bytes | None]], encode_format: str) -> None:
    hidden = path.with_name(f".{path.name}.tmp")
    with tarfile.open(hidden, "w", format=tarfile.PAX_FORMAT) as tar:
        for row, image in samples:
            if image is None:
                continue
            for name, content in _members(row, image, encode_format):
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = len(content), _TIME, 0o444
                info.uname = info.gname = "bigdata"
                tar.addfile(info, io.BytesIO(content))
    hidden.replace(path)


def _write_folder(path: Path, samples: list[tuple[_Row, bytes | None]], encode_format: str) -> None:
    path.mkdir(exist_ok=True)
    for row, image in samples:
        if image is not None:
            for name, content in _members(row, image, encode_format):
                (path / name).write_bytes(content)


def _write_parquet(path: Path, samples: list[tuple[_Row, bytes | None]], image_column: str | None) -> None:
    table = pa.Table.from_pylist([asdict(row) for row, _ in samples], schema=_SCHEMA)
    if image_column:
        table = table.append_column(image_column, pa.array([image for _, image in samples], pa.binary()))
    hidden = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, hidden, row_group_size=ROW_GROUP)
    hidden.replace(path)  # a listing of the folder sees the whole file or none


def _stats(samples: list[tuple[_Row, bytes | None]]) -> dict[str, Any]:
    statuses = Counter(row.status for row, _ in samples)
    return {
        "count": len(samples),
        "successes": statuses["success"],
        "failed_to_download": statuses["failed_to_download"],
        "failed_to_resize": 0,
        "duration": 1.0,
        "start_time": _TIME,
        "end_time": _TIME + 1.0,
        "status_dict": dict(Counter(row.error_message or "success" for row, _ in samples)),
    }
