"""Records which input an output belongs to, in a marker file at the output's root.

Shards of two inputs may have the same names, and would replace each other's rows.
"""

import os
import re
from dataclasses import dataclass, field

from boring_assets import __version__
from boring_assets.errors import SettingsError
from boring_assets.output.files import committed_facts, file_versions
from boring_assets.output.state import Json, locked, read_json, update_json
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root
from partitions.own_files import EMBEDDINGS, OUTPUT_MARKER
from partitions.shards import uri_of

_LOCAL = "file://"
# Number of files that are read to find the input of an output without a marker.
_SAMPLED = 24


@dataclass(frozen=True)
class Origin:
    """The input of an output.

    Attributes:
        inputs: URI of its input. Several if an earlier version embedded the output from several; none if the
            output is new, or its files name no input.
        moved_from: Earlier URIs of the input.
    """

    inputs: list[str]
    moved_from: list[str] = field(default_factory=list)

    def includes(self, uri: str, *, earlier: bool = False) -> bool:
        """Whether a URI is the output's input, or with `earlier` was it once."""
        known = (*self.inputs, *(self.moved_from if earlier else ()))
        return any(is_same(one, uri) for one in known)


def origin_of(output: Root) -> Origin:
    """Returns the input that an output belongs to, from its marker or else from some of its files.

    Raises:
        StorageError: The output cannot be read.
    """
    with storage_errors(f"{output.uri}/{OUTPUT_MARKER}", "read"):
        marker = read_json(output, OUTPUT_MARKER)
    if isinstance(marker.get("input"), str):
        return Origin([marker["input"]], [str(one) for one in marker.get("moved_from") or []])
    return Origin(_inputs_of_files(output))


def check_input(output: Root, source: Root) -> None:
    """Refuses an input that an output does not belong to.

    Raises:
        SettingsError: The output belongs to another input.
        StorageError: The output cannot be read.
    """
    origin = origin_of(output)
    if origin.inputs and not origin.includes(source.uri):
        raise SettingsError(
            f"{output.uri} was embedded from {origin.inputs[0]}, not from {source.uri}. An output belongs to "
            "one input, since shards of the same name would replace each other. Give another output. If the "
            f"input was moved, record it once: boring-assets set-input {output.uri} {source.uri}"
        )


def claim(output: Root, source: Root) -> None:
    """Records the input of a new output, and refuses another one.

    Raises:
        SettingsError: The output belongs to another input.
        StorageError: The output cannot be read or written.
    """
    check_input(output, source)

    def note(marker: Json) -> Json:
        return marker if marker.get("input") else _marker(source.uri, [])

    with locked(output):
        update_json(output, OUTPUT_MARKER, note, indent=2)
    check_input(output, source)  # two runs may have begun at once


def set_input(output: Root, source: Root) -> str:
    """Records that the input of an output was moved; returns its earlier URI, empty where none is known.

    Raises:
        StorageError: The output cannot be read or written.
    """
    origin = origin_of(output)
    known = [one for one in (*origin.inputs, *origin.moved_from) if not is_same(one, source.uri)]
    with locked(output):
        update_json(output, OUTPUT_MARKER, lambda _: _marker(source.uri, known), indent=2)
    return known[0] if known else ""


def is_same(one: str, other: str) -> bool:
    """Whether two URIs of opened roots name one place; symbolic links count as what they lead to."""
    if one == other:
        return True
    local = one.startswith(_LOCAL) and other.startswith(_LOCAL)
    return local and _real(one) == _real(other)


def root_of(source_uri: str, key: str) -> str | None:
    """Returns the input that a shard's URI is below; None if the URI does not end in the key."""
    found = re.fullmatch(rf"(.*)/{re.escape(key)}(\.parquet|\.t[\w.-]*)?", source_uri, re.DOTALL)
    return found[1] if found else None


def _real(uri: str) -> str:
    return os.path.realpath(uri[len(_LOCAL) :] or "/")


def _marker(uri: str, moved_from: list[str]) -> Json:
    return {"input": uri, "moved_from": moved_from, "boring_assets_version": __version__}


def _inputs_of_files(output: Root) -> list[str]:
    keys = list(file_versions(output, EMBEDDINGS))
    found: dict[str, None] = {}
    for key in keys[:: max(1, len(keys) // _SAMPLED)]:
        uri = committed_facts(output, f"{EMBEDDINGS}/{uri_of('', key)}").get("source_uri")
        if isinstance(uri, str) and (root := root_of(uri, key)):
            found[root] = None
    return list(found)
