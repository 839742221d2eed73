"""`boring-assets list-pictures`: writes parquet shards that list a folder's pictures, for `embed`.

The pictures are not moved. Existing lists are never changed: new pictures get new lists.
"""

import json
import posixpath
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.inputs.layouts import IMAGE_SUFFIXES
from boring_assets.engine.inputs.read_ahead import in_parallel
from boring_assets.engine.inputs.streamed import MAX_TEXT_BYTES
from boring_assets.engine.inputs.texts import to_text
from boring_assets.errors import StorageError
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import Root, check_readable, open_root

_READERS = 16
_NAME = "pictures-{:05}.parquet"
_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("key", "url", "caption")])
"""Key and URL of a row are the picture's path below the folder; its caption is the `.txt` beside it."""


def write_lists(uri: str, samples_per_shard: int) -> list[int]:
    """Writes shards that list the pictures of a folder which no earlier list has; returns their sizes.

    The lists are written to the folder. Names that begin with `.` or `_` are left out.

    Raises:
        StorageError: The folder cannot be read or written, or holds no pictures.
    """
    folder = open_root(uri)
    check_readable(folder)
    known, number = _known(folder)
    pictures = (pair for pair in _walk(folder) if pair[0] not in known)
    sizes = []
    while part := list(islice(pictures, samples_per_shard)):
        captions = _captions(folder, {text for _, text in part if text})
        rows = {
            "key": [path for path, _ in part],
            # A colon would make it a URL with a scheme.
            "url": [f"./{path}" if ":" in path else path for path, _ in part],
            "caption": [captions.get(text) for _, text in part],
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(rows, schema=_SCHEMA), sink, compression="zstd")
        name = _NAME.format(number)
        write_bytes(folder, name, sink.getvalue())
        # Last, as img2dataset does: it marks the shard as complete.
        stats = json.dumps({"count": len(part)}).encode()
        write_bytes(folder, name.replace(".parquet", "_stats.json"), stats)
        number += 1
        sizes.append(len(part))
    if not number:
        raise StorageError(f"There are no pictures below {folder.uri}. Expected: .jpg, .png, .webp, ...")
    return sizes


def _known(folder: Root) -> tuple[set[str], int]:
    """Returns the pictures of existing lists, and the number of the next list."""
    found: set[str] = set()
    number = 0
    while folder.fs.isfile(f"{folder.path}/{(name := _NAME.format(number))}"):
        with folder.open(name) as file:
            found.update(pq.read_table(file, columns=["key"]).column(0).to_pylist())
        number += 1
    return found, number


def _walk(folder: Root) -> Iterator[tuple[str, str]]:
    """Yields the path of each picture, and of the `.txt` beside it or an empty text."""
    start = len(folder.path.rstrip("/")) + 1
    with storage_errors(folder.uri, "list"):
        for parent, folders, files in folder.fs.walk(folder.path, topdown=True):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
            below = f"{parent.rstrip('/')}/"[start:]
            there = set(files)
            for name in sorted(there):
                stem, _, suffix = name.rpartition(".")
                if not stem or suffix.lower() not in IMAGE_SUFFIXES or name.startswith((".", "_")):
                    continue
                is_text = to_text(name.encode(errors="surrogateescape")) is not None
                if any(ord(letter) < 32 or letter == "\\" for letter in name) or not is_text:
                    continue  # the engine refuses such paths, and parquet such texts
                text = f"{stem}.txt"
                yield posixpath.join(below, name), posixpath.join(below, text) if text in there else ""


def _captions(folder: Root, texts: set[str]) -> dict[str, str | None]:
    """Returns the captions in some text files, by path; None where a file is empty or not UTF-8."""

    def read(text: str) -> tuple[str, str | None]:
        with storage_errors(f"{folder.uri}/{text}", "read"):
            data = folder.fs.cat_file(f"{folder.path}/{text}", start=0, end=MAX_TEXT_BYTES)
        return text, (to_text(data) or "").strip() or None

    return dict(in_parallel(texts, read, _READERS))
