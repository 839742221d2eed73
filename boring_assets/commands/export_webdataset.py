"""`boring-assets export --format webdataset`: the images as new shards, with all their columns.

`{shard}.tar` has `{key}.jpg` (or the image's own format), `{key}.txt` (the caption), `{key}.json` (all other
columns) and `{key}.npy` (the embedding) of each image. webdataset and this project can read it.
"""

import io
import json
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from boring_assets.commands.export_source import Export, Part
from boring_assets.engine.decoding.limits import Limits, image_format
from boring_assets.engine.inputs.layouts import OpenShard
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ShardError, StorageError
from boring_assets.output.files import committed_facts
from boring_assets.output.schema import META_PREFIX, ROW
from boring_assets.settings import Settings
from partitions.own_files import EMBEDDINGS
from partitions.shards import uri_of
from resources.source import ShardSource

_SAMPLES = 10_000
_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
_EXTENSIONS = {"JPEG": "jpg", "HEIF": "heic", "JPEG2000": "jp2"}
_GONE = Failure(Reason.MISSING_IMAGE)


@dataclass(frozen=True)
class _Sample:
    """An image or its failure, its columns, and its embedding, [dim]."""

    image: bytes | Failure
    columns: dict[str, Any]
    vector: np.ndarray


def to_webdataset(export: Export, settings: Settings) -> dict[str, int]:
    """Reads the chosen images from their source shards, and writes them into new ones of 10,000 images.

    Returns:
        How many rows were left out, by reason.

    Raises:
        StorageError: A source shard has changed since it was embedded, or cannot be read.
    """
    left_out: Counter[str] = Counter()
    keys: set[str] = set()
    count = 0
    with ExitStack() as shard:
        for sample in _samples(export, settings):
            if isinstance(sample.image, Failure):
                left_out[sample.image.reason.value] += 1
                continue
            if count % _SAMPLES == 0:
                shard.close()
                file = shard.enter_context(export.writing(f"{count // _SAMPLES:05}.tar"))
                tar = shard.enter_context(tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT))
                keys.clear()
            key = _unique_key(sample.columns.get("key"), count, keys)
            for extension, data in _members(sample).items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            count += 1
    return dict(left_out)


def _samples(export: Export, settings: Settings) -> Iterator[_Sample]:
    """Yields the chosen rows of each partition with their images, in the order of the source."""
    source = ShardSource.from_settings(settings)
    limits = Limits(
        bytes=settings.max_image_bytes,
        shard_rows=settings.max_shard_rows,
        shard_bytes=settings.max_shard_mb * 2**20,
    )
    for part in export.parts:
        if part.rows:
            try:
                yield from _of_part(export, part, _open(export, part, source, limits))
            except ShardError as error:
                raise StorageError(f"The images of {part.key} cannot be read: {error}") from error


def _of_part(export: Export, part: Part, opened: OpenShard) -> Iterator[_Sample]:
    table = export.read(part)
    vectors, columns = export.vectors(table), table.drop_columns(["embedding"])
    places = {row: place for place, row in enumerate(table[ROW].to_pylist()) if row is not None}
    opened.only_rows = frozenset(places)
    answered = 0
    try:
        for row, image in opened.images():
            place = places.pop(row, None)
            if place is not None:
                answered += 1
                values = columns.slice(place, 1).to_pylist()[0]
                yield _Sample(image or _GONE, values, vectors[place])
    finally:
        opened.close()
    for _ in range(len(table) - answered):
        yield _Sample(_GONE, {}, vectors[0])


def _open(export: Export, part: Part, source: ShardSource, limits: Limits) -> OpenShard:
    found = source.find([part.key])[part.key]
    if isinstance(found, ShardError):
        raise found
    facts = committed_facts(export.output, f"{EMBEDDINGS}/{uri_of('', part.key)}")
    if found.version != facts.get("source_version"):
        raise ShardError(f"{found.uri} has changed since it was embedded. Embed it again first.")
    return open_shard(found, limits, source.fetcher())


def _members(sample: _Sample) -> dict[str, bytes]:
    """The files of a sample, by extension."""
    assert isinstance(sample.image, bytes)
    kind = image_format(sample.image) or "jpg"
    files = {_EXTENSIONS.get(kind, kind.lower()): sample.image}
    if caption := sample.columns.get("caption"):
        files["txt"] = str(caption).encode()
    files["json"] = json.dumps(_plain(sample.columns), default=str).encode()
    array = io.BytesIO()
    np.save(array, sample.vector, allow_pickle=False)
    files["npy"] = array.getvalue()
    return files


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    """Returns columns for JSON: without bytes and NaN, and `meta_width` as `width`, as in the input."""
    values = {}
    for name, value in columns.items():
        short = name.removeprefix(META_PREFIX)
        if not isinstance(value, bytes):
            number = not isinstance(value, float) or math.isfinite(value)
            values[name if short in columns else short] = value if number else None
    return values


def _unique_key(key: object, number: int, taken: set[str]) -> str:
    """Returns the sample's key, or a number if the key is no file name or is taken in the shard."""
    name = key if isinstance(key, str) and _KEY.fullmatch(key) else ""
    while not name or name in taken:
        name, number = f"{number:09}", number + 1
    taken.add(name)
    return name
