"""Finds the columns of a shard with its images, keys, captions and URLs."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from boring_assets.engine.decoding.limits import image_format
from boring_assets.engine.inputs.image_values import (
    can_be_image,
    image_field,
    is_binary,
    is_image,
    may_hold_images,
    starts,
)
from boring_assets.engine.inputs.texts import key_text, to_text, to_texts
from boring_assets.engine.samples import ColumnNames
from boring_assets.errors import ShardError

# img2dataset names the bytes column after the encode format; others call it `image`.
IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
# Spark's `binaryFile` format. Other data has text in columns of this name, so the bytes must be images.
_CHECKED_IMAGE_COLUMNS = ("content",)
CAPTION_TEXT = "caption as text"
"""A column for the first texts of captions in lists or structs. The captions stay among the other columns."""
# Names of the three columns that the output always has, in the order of preference, lower case.
ALIASES = {
    "url": ("url", "image_url", "image_link"),
    "key": ("key", "__key__"),
    "caption": (CAPTION_TEXT, "caption", "text", "alt_text", "alt"),
}
_BATCH_ROWS, _MAX_ROWS = 16, 1024


def _find_columns(schema: pa.Schema, names: ColumnNames, uri: str) -> dict[str, str]:
    """Finds a shard's `url`, `key` and `caption` columns: those of the settings, else the usual ones."""
    lower = by_lower(schema.names)
    found = {}
    for name, aliases in ALIASES.items():
        if wanted := getattr(names, name):
            if wanted not in schema.names:
                raise ShardError(missing_column(wanted, name, schema.names, uri))
            found[name] = wanted
            continue
        for alias in aliases:
            nested = alias in lower and pa.types.is_nested(schema.field(lower[alias]).type)
            if alias in lower and (name == "caption" or not nested):
                found[name] = lower[alias]
                break
    return found


def by_lower(names: Iterable[str]) -> dict[str, str]:
    """Returns names by their lower case; of several, the one in lower case, else the first."""
    return {
        name.lower(): name for name in sorted(reversed(list(names)), key=lambda name: name == name.lower())
    }


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
    columns = _find_columns(rows.schema, names, uri)
    for name, column in list(columns.items()):
        number = rows.schema.get_field_index(column)
        texts = to_texts(rows[number], key_text if name == "key" else to_text)
        if pa.types.is_nested(rows.schema.field(number).type):
            columns[name] = CAPTION_TEXT if name == "caption" else f"{name} as text"
            rows = rows.append_column(columns[name], texts)
        else:
            rows = rows.set_column(number, column, texts)
    return rows, columns


def without_data_urls(rows: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Returns the rows with null for URLs that are images themselves (`data:`)."""
    if "url" not in columns:
        return rows
    number = rows.schema.get_field_index(columns["url"])
    are_data = pc.starts_with(rows[number], "data:", ignore_case=True)
    urls = pc.if_else(are_data, pa.scalar(None, pa.string()), rows[number])
    return rows.set_column(number, columns["url"], urls) if pc.any(are_data).as_py() else rows


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

    def hint(self, schema: pa.Schema) -> str:
        """Returns what to do where none of the columns is taken without a setting."""
        return "".join(
            f" The column {name!r} holds images: to embed them, set BORING_IMAGE_COLUMN={name}."
            if can_be_image(kind := schema.field(name).type)
            else f" The column {name!r} holds images inside {kind}, which is not read: write them into a "
            "column of their own."
            for name in sorted(self.others)
        )

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
    kinds = {field.name: field.type for field in schema}
    holders = {name for name, kind in kinds.items() if may_hold_images(kind)}
    if names.image:
        chosen = names.image if names.image in kinds else None  # else an extension of files beside it
        if chosen and not can_be_image(kinds[chosen]):
            raise ShardError(
                f"{uri}: the column {chosen!r}, which BORING_IMAGE_COLUMN names, has the type "
                f"{kinds[chosen]}. Expected one image a row: bytes, a struct with `bytes`, "
                "base64 text, or a list of byte values."
            )
        return ImageColumns(chosen, _columns_of_images(file, holders - {chosen}), False)
    structs = {name for name in holders if image_field(kinds[name]) == "bytes"}
    lower = by_lower(name for name in kinds if name in structs or is_binary(kinds[name]))
    chosen = next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
    images = _columns_of_images(file, holders - {chosen})
    if chosen:
        return ImageColumns(chosen, images, False)
    candidates = {name for name in images if is_binary(kinds[name]) or image_field(kinds[name])}
    # A struct `{bytes, path}` holds images by its type, also where no bytes are sound.
    candidates = candidates or structs
    lower = by_lower(candidates)
    usual = [lower[name] for name in (*IMAGE_COLUMNS, *_CHECKED_IMAGE_COLUMNS) if name in lower]
    if len(candidates) > 1 and not usual:
        raise ShardError(ambiguous_images(candidates, uri))
    chosen = next(iter(usual or candidates), None)
    return ImageColumns(chosen, images - {chosen}, chosen is not None)


def _columns_of_images(file: pq.ParquetFile, names: set[str]) -> set[str]:
    """Returns those of some columns whose first values are images; reads the first rows of the file."""
    found: set[str] = set()
    unknown, rows = set(names), 0
    if not unknown:
        return found
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(unknown), use_threads=False):
        for name in sorted(unknown):
            values = [start for start in starts(batch.column(name)) if start]
            if values:
                unknown.discard(name)
                if any(map(is_image, values)) or all(map(image_format, values)):
                    found.add(name)
        rows += batch.num_rows
        if not unknown or rows >= _MAX_ROWS:
            break
    return found


def without_images(rows: pa.Table, columns: dict[str, str], *, keep: bool) -> tuple[pa.Table, set[str]]:
    """Finds the columns besides `columns` that hold an image anywhere, also as base64.

    Returns:
        The rows, without these columns unless `keep`; and the names of these.
    """
    others = set(rows.column_names) - set(columns.values())
    found = {name for name in others if any(map(is_image, starts(rows[name])))}
    return rows if keep else rows.drop_columns(sorted(found)), found
