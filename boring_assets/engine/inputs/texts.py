"""Texts of every type that captions, keys and URLs come in, as strings."""

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from boring_assets.engine.inputs.image_values import is_binary

_NAMES = ("raw", "caption", "text", "sentence", "value")
"""Fields of a struct that are looked at first: COCO's and Flickr30k's captions are structs with `raw`."""


def to_text(data: bytes) -> str | None:
    """The text, without the mark that Windows writes before it; None where the bytes are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def key_text(data: bytes) -> str:
    """The text of a key in bytes, such as a hash or a UUID: in hexadecimal where it is not UTF-8."""
    text = to_text(data)
    return data.hex() if text is None else text


def first_text(value: Any) -> str | None:
    """The first text in a value: of a list its first item's, of a struct its `raw`'s, `caption`'s, ..."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return to_text(value)
    if isinstance(value, dict):
        names = [name for name in _NAMES if name in value]
        value = [
            value[name] for name in (*names, *value) if isinstance(value[name], str | bytes | list | dict)
        ]
    if isinstance(value, list | tuple):
        return next((text for text in map(first_text, value) if text is not None), None)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def to_texts(column: pa.ChunkedArray, of_bytes: Callable[[bytes], str | None] = to_text) -> pa.ChunkedArray:
    """Returns a column as strings, null where a value has no text.

    Args:
        column: Texts, numbers, bytes, lists or structs. Whole floats lose their `.0`: pandas makes floats of
            integers where one is missing.
        of_bytes: Returns the text of bytes.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if not (pa.types.is_nested(kind) or pa.types.is_floating(kind) or is_binary(kind)):
        try:
            return column.cast(pa.string())
        except pa.ArrowException:
            pass
    values = column.to_pylist(maps_as_pydicts="lossy")
    texts = (of_bytes(value) if isinstance(value, bytes) else first_text(value) for value in values)
    return pa.chunked_array([pa.array(texts, pa.string())])


def number_in(key: str) -> int | None:
    """The number that a key spells, e.g. 7 for `7`, `7.0` and `000000007`; None where it spells none."""
    whole, point, rest = key.partition(".")
    if not (whole.isascii() and whole.isdecimal()) or rest.strip("0") or len(whole) > 18:
        return None
    return None if point and not rest else int(whole)
