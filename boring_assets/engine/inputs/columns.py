"""Finds the columns of a shard with its images, keys, captions and URLs."""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import image_format
from boring_assets.engine.inputs.texts import to_texts
from boring_assets.engine.samples import ColumnNames
from boring_assets.errors import ShardError

# img2dataset names the bytes column after the encode format; others call it `image`.
IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
# Spark's `binaryFile` format. Other data has text in columns of this name, so the bytes must be images.
_CHECKED_IMAGE_COLUMNS = ("content",)
CAPTION_TEXT = "caption as text"
"""A column for captions that are made from a list or struct, which stays among the other columns."""
# Names of the three columns that the output always has, in the order of preference, lower case.
ALIASES = {
    "url": ("url", "image_url", "image_link"),
    "key": ("key", "__key__"),
    "caption": (CAPTION_TEXT, "caption", "text", "alt_text", "alt"),
}
_BATCH_ROWS, _MAX_ROWS = 16, 1024
_BASE64_PREFIX_LENGTH = 64


def find_columns(schema: pa.Schema, names: ColumnNames, uri: str) -> dict[str, str]:
    """Finds a shard's `url`, `key` and `caption` columns: those of the settings, else the usual ones.

    Raises:
        ShardError: A column that the settings name is not there.
    """
    lower = {name.lower(): name for name in reversed(schema.names)}
    found = {}
    for name, aliases in ALIASES.items():
        if wanted := getattr(names, name):
            found[name] = _named(wanted, name, schema.names, uri)
            continue
        for alias in aliases:
            nested = alias in lower and pa.types.is_nested(schema.field(lower[alias]).type)
            if alias in lower and (name == "caption" or not nested):
                found[name] = lower[alias]
                break
    return found


def _named(wanted: str, setting: str, there: Iterable[str], uri: str) -> str:
    there = list(there)
    if wanted not in there:
        raise ShardError(missing_column(wanted, setting, there, uri))
    return wanted


def missing_column(wanted: str, setting: str, there: Iterable[str], uri: str, what: str = "column") -> str:
    """Returns the message for a column, feature or extension that a shard does not have."""
    listed = ", ".join(sorted(there)[:50]) or "none"
    return (
        f"{uri} has no {what} {wanted!r}, which BORING_{setting.upper()}_COLUMN names. It has: {listed}. "
        "Correct the setting, or unset it."
    )


def ambiguous_images(candidates: Iterable[str], uri: str, what: str = "columns") -> str:
    """Returns the message for a shard with several columns of images and no usual name."""
    candidates = sorted(candidates)
    return (
        f"{uri} has several {what} of images: {', '.join(candidates)}. Name the one to embed, e.g. "
        f"BORING_IMAGE_COLUMN={candidates[0]}."
    )


def with_texts(rows: pa.Table, names: ColumnNames, uri: str) -> tuple[pa.Table, dict[str, str]]:
    """Returns the rows with URL, key and caption as strings, and the names of these columns.

    For a list or struct, a column with its first text is added.

    Raises:
        ShardError: A column that the settings name is not there.
    """
    columns = find_columns(rows.schema, names, uri)
    for name, column in list(columns.items()):
        number = rows.schema.get_field_index(column)
        texts = to_texts(rows[number])
        if pa.types.is_nested(rows.schema.field(number).type):
            columns[name] = CAPTION_TEXT if name == "caption" else f"{name} as text"
            rows = rows.append_column(columns[name], texts)
        else:
            rows = rows.set_column(number, column, texts)
    return rows, columns


def path_field(schema: pa.Schema, image_column: str | None) -> list[str]:
    """Returns the parquet name of the image column's field with paths, if there is one."""
    kind = schema.field(image_column).type if image_column else pa.null()
    names = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    return [f"{image_column}.path"] if "path" in names and not pa.types.is_null(names["path"]) else []


def with_paths(rows: pa.Table, image_column: str | None) -> pa.Table:
    """Returns the rows with the images' paths as a column, `image_path` for the column `image`."""
    number = rows.schema.get_field_index(image_column)
    paths = pc.struct_field(rows[number], "path")
    name = f"{image_column}_path"
    if name in rows.column_names or paths.null_count == len(paths):
        return rows.remove_column(number)
    return rows.set_column(number, name, paths)


@dataclass
class ImageColumns:
    """The columns of a parquet that hold images.

    Attributes:
        column: The one whose images are embedded; None where the images are elsewhere.
        others: The others.
        found_by_bytes: Whether it was found by its bytes, not by its name.
    """

    column: str | None
    others: set[str]
    found_by_bytes: bool

    def notes(self, keep_images: bool) -> list[str]:
        """Returns messages for the user about the choice."""
        notes = []
        if self.found_by_bytes:
            notes.append(
                f"Images are read from the column {self.column!r}, the only one that holds images. To name "
                "another, set BORING_IMAGE_COLUMN."
            )
        if self.others and not keep_images:
            notes.append(
                f"Columns of images that are not embedded are not copied to the output: "
                f"{', '.join(sorted(self.others))}. To copy them, set BORING_KEEP_IMAGE_COLUMNS."
            )
        return notes


def find_image_column(file: pq.ParquetFile, names: ColumnNames, uri: str) -> ImageColumns:
    """Finds the column whose images are embedded.

    That is the one named by the settings; else the first of `IMAGE_COLUMNS` with bytes or Hugging Face's
    `{bytes, path}`; else the only column whose bytes are images.

    Raises:
        ShardError: The column that the settings name cannot hold images, or several columns hold images and
            none has a usual name.
    """
    schema = file.schema_arrow
    holders = {field.name for field in schema if holds_bytes(field.type)}
    single = {name for name in holders if not pa.types.is_nested(schema.field(name).type)}
    single |= {name for name in holders if pa.types.is_struct(schema.field(name).type)}
    if names.image:
        chosen = names.image if names.image in schema.names else None  # else an extension of files beside it
        if chosen and not can_be_image(schema.field(chosen).type):
            raise ShardError(
                f"{uri}: the column {chosen!r}, which BORING_IMAGE_COLUMN names, has the type "
                f"{schema.field(chosen).type}. Expected one image a row: bytes, a struct with `bytes`, "
                "base64 text, or a list of byte values."
            )
        return ImageColumns(chosen, _columns_of_images(file, holders - {chosen}), False)
    lower = {name.lower(): name for name in sorted(single, reverse=True)}
    chosen = next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
    images = _columns_of_images(file, holders - {chosen})
    if chosen:
        return ImageColumns(chosen, images, False)
    candidates = images & single
    if not candidates:  # a struct `{bytes, path}` holds images by its type, also where no bytes are sound
        candidates = {name for name in single if pa.types.is_struct(schema.field(name).type)}
    checked = [name for name in _CHECKED_IMAGE_COLUMNS if name in candidates]
    if len(candidates) > 1 and not checked:
        raise ShardError(ambiguous_images(candidates, uri))
    chosen = next(iter(checked or candidates), None)
    return ImageColumns(chosen, images - {chosen}, chosen is not None)


def _columns_of_images(file: pq.ParquetFile, names: set[str]) -> set[str]:
    """Returns those of some columns whose first values are images; reads the first rows of the file."""
    found: set[str] = set()
    unknown, rows = set(names), 0
    if not unknown:
        return found
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(unknown), use_threads=False):
        for name in sorted(unknown):
            values = list(_byte_strings(batch.column(name).to_pylist()))
            if values:
                unknown.discard(name)
                if any(map(image_format, values)):
                    found.add(name)
        rows += batch.num_rows
        if not unknown or rows >= _MAX_ROWS:
            break
    return found


def text_columns_of_images(rows: pa.Table) -> set[str]:
    """The text columns whose first value is a base64 image."""
    found = set()
    for field in rows.schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            start = rows[field.name].drop_null().slice(0, 1)
            text = start[0].as_py() if len(start) else ""
            if len(text) > _BASE64_PREFIX_LENGTH and image_format(_base64_start(text)):
                found.add(field.name)
    return found


def _base64_start(text: str) -> bytes:
    if text.startswith("data:"):
        text = text[: _BASE64_PREFIX_LENGTH * 4].partition(",")[2]
    try:
        return base64.b64decode(text[:_BASE64_PREFIX_LENGTH], validate=True)
    except ValueError:
        return b""


def _byte_strings(value: Any) -> Iterator[bytes]:
    """The byte strings in a value of a column, inside lists and structs too."""
    if isinstance(value, bytes):
        if value:
            yield value
    elif isinstance(value, dict):
        yield from _byte_strings(value.get("bytes"))
    elif isinstance(value, list):
        for item in value:
            yield from _byte_strings(item)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold images: bytes, a struct with `bytes`, or lists of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    return is_binary(kind) or _is_struct_of_bytes(kind)


def can_be_image(kind: pa.DataType) -> bool:
    """Whether a setting may name a column of this type: bytes, struct, base64 text, list of integers."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_integer(kind.value_type))
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return text or is_binary(kind) or _is_struct_of_bytes(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type is bytes of any length."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_struct_of_bytes(kind: pa.DataType) -> bool:
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    # pandas and pyarrow write a field that is always null with the type null.
    return "bytes" in fields and (
        is_binary(fields["bytes"]) or (pa.types.is_null(fields["bytes"]) and "path" in fields)
    )
