"""Recognizes files that this project wrote: they are never shards."""

from collections.abc import Collection, Iterable

from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root

OUTPUT_MARKER = ".boring_assets.json"
"""At the root of every output, written before any other file of it."""
EXPORT_MARKER = ".boring_assets_export.json"
"""At the root of every export. All files below belong to the export."""
PARTS = ".parts.json"
"""At the root of the output of a split dataset: its parts."""
EMBEDDINGS, FAILURES = "image_embeddings", "image_failures"
SCORES, LABELS = "clip_scores", "image_labels"
_FOLDERS = (EMBEDDINGS, FAILURES, SCORES, LABELS, "embedding_index")
_FILE = "near_duplicates.parquet"
_PARTS = tuple(f"/{name}/" for name in _FOLDERS)


def is_marker(path: str) -> bool:
    """Whether a file is the marker of an output or an export."""
    return path.endswith((f"/{OUTPUT_MARKER}", f"/{EXPORT_MARKER}"))


def own_files(paths: Collection[str], markers: Iterable[str]) -> set[str]:
    """Returns the files of a listing that belong to an output or an export of this project.

    Outputs of earlier versions have no marker. They are known by the pairs that a commit writes: a file below
    `image_embeddings/` and one of the same name below `image_failures/`.

    Args:
        paths: All files of the listing.
        markers: Those of its files that are markers.
    """
    exports, outputs = [], set()
    for marker in markers:
        folder, _, name = marker.rpartition("/")
        if name == EXPORT_MARKER:
            exports.append(f"{folder}/")
        else:
            outputs.add(folder)
    inside = [path for path in paths if any(part in path for part in _PARTS)]
    for path in inside:
        start, found, rest = path.partition(f"/{EMBEDDINGS}/")
        if found and f"{start}/{FAILURES}/{rest}" in paths:
            outputs.add(start)
    own = {path for path in inside if _folder_of(path, outputs)}
    own |= {path for folder in outputs if (path := f"{folder}/{_FILE}") in paths}
    if exports:
        own |= {path for path in paths if path.startswith(tuple(exports))}
    return own


def _folder_of(path: str, outputs: Collection[str]) -> bool:
    """Returns whether a file is in one of the folders of an output."""
    return any(path[: at + 1].rstrip("/") in outputs for part in _PARTS for at in _places(path, part))


def _places(path: str, part: str) -> Iterable[int]:
    at = path.find(part)
    while at >= 0:
        yield at
        at = path.find(part, at + 1)


def output_around(root: Root, path: str) -> str:
    """Returns the path of the output that contains a path; empty if there is none.

    It sends requests only if a folder has a name of an output's folders.

    Args:
        root: A root that is the path, or contains it.
        path: A path on its filesystem.

    Raises:
        StorageError: The storage cannot be read.
    """
    for part in _PARTS:
        for at in _places(f"{path}/", part):
            output = path[:at]
            with storage_errors(root.uri, "read"):
                if root.fs.exists(f"{output}/{OUTPUT_MARKER}") or (
                    root.fs.exists(f"{output}/{EMBEDDINGS}") and root.fs.exists(f"{output}/{FAILURES}")
                ):
                    return output
    return ""
