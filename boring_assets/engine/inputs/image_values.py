"""Which columns hold encoded images: by their types, and by their values."""

import base64
import binascii
import codecs
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boring_assets.engine.decoding.limits import image_format

# The first bytes of a value that are looked at. The smallest images have some thirty bytes.
_START, _LEAST = 32, 26
START_BYTES = 256
"""How much of a value says whether it is an image, also as base64."""
_BASE64_START = 64
# Longer than a SHA-256 in hexadecimal, of which a column may have millions.
_MAYBE_BASE64 = r"^\s*((?i:data:)|[A-Za-z0-9+/_-]{64}\s*[A-Za-z0-9+/_=-])"
# Lists of numbers are taken apart in Python: only the first ones of a column.
_MAX_LISTS = 64
# What may follow `FF D8 FF` in a JPEG: APPn, COM, DQT, DHT, DRI, SOFn.
_JPEG_MARKERS = frozenset([*range(0xE0, 0xF0), 0xFE, 0xDB, 0xC4, 0xDD, 0xC0, 0xC1, 0xC2])
_BARE_JXL = b"\xff\x0a"
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
_TEXTS = (pa.string(), pa.large_string(), pa.string_view())
_LISTS = pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType | pa.LargeListViewType


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without dictionary encoding, and an extension type as what it is stored as."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type is bytes."""
    kind = plain_type(kind)
    return kind in _BYTES or pa.types.is_fixed_size_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    return plain_type(kind) in _TEXTS


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of any kind."""
    return isinstance(kind, _LISTS)


def image_field(kind: pa.DataType) -> str | None:
    """The field of a struct with the image: `bytes`, or else the only one of bytes; None without one."""
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if "bytes" in fields:
        # pandas and pyarrow write a field that is always null with the type null.
        empty = pa.types.is_null(fields["bytes"]) and "path" in fields
        return "bytes" if empty or is_binary(fields["bytes"]) or is_text(fields["bytes"]) else None
    binary = [name for name, field in fields.items() if is_binary(field)]
    return binary[0] if len(binary) == 1 else None


def may_hold_images(kind: pa.DataType) -> bool:
    """Whether values of a type may be images, or hold some: all but texts."""
    if pa.types.is_struct(kind):
        return any(may_hold_images(field.type) for field in kind)
    if pa.types.is_map(kind):
        return may_hold_images(kind.key_type) or may_hold_images(kind.item_type)
    if is_list(kind):
        return pa.types.is_integer(kind.value_type) or may_hold_images(kind.value_type)
    return is_binary(kind)


def can_be_image(kind: pa.DataType) -> bool:
    """Whether a setting may name a column of this type, see docs/inputs.md."""
    if is_list(kind):
        item = kind.value_type
        return pa.types.is_integer(item) or is_binary(item) or image_field(item) is not None
    return is_text(kind) or is_binary(kind) or image_field(kind) is not None or pa.types.is_null(kind)


def is_image(start: bytes) -> bool:
    """Whether bytes begin like an image. Unlike `image_format`, it is right about millions of other bytes."""
    if len(start) < _LEAST or start.startswith(_BARE_JXL):
        return False
    found = image_format(start)
    return found is not None and (found != "JPEG" or start[3] in _JPEG_MARKERS)


def starts(column: pa.Array | pa.ChunkedArray) -> Iterator[bytes]:
    """Yields the first bytes of bytes, byte values and base64 texts, also in lists, structs and maps."""
    kind = column.type
    if isinstance(column, pa.ChunkedArray):
        for part in column.chunks:
            yield from starts(part)
    elif isinstance(column, pa.ExtensionArray):
        yield from starts(column.storage)
    elif isinstance(column, pa.DictionaryArray):
        yield from starts(column.dictionary)
    elif pa.types.is_struct(kind):
        for field in column.flatten():
            yield from starts(field)
    elif pa.types.is_map(kind):
        yield from starts(column.keys)
        yield from starts(column.items)
    elif is_list(kind) and pa.types.is_integer(kind.value_type):
        for values in column.drop_null()[:_MAX_LISTS]:
            if len(values.values) >= _LEAST and not (start := values.values[:_START]).null_count:
                yield start.to_numpy(zero_copy_only=False).astype(np.int64).astype(np.uint8).tobytes()
    elif is_list(kind):
        yield from starts(column.flatten())
    elif is_binary(kind):
        binary = column.cast(pa.large_binary()) if pa.types.is_binary_view(kind) else column
        for start in pc.binary_slice(binary, 0, START_BYTES).drop_null().unique().to_pylist():
            yield start
            if start.isascii():
                yield base64_start(start)
    elif is_text(kind):
        texts = column.filter(pc.match_substring_regex(column, _MAYBE_BASE64)).cast(pa.large_binary())
        yield from map(base64_start, pc.binary_slice(texts, 0, START_BYTES).unique().to_pylist())


def is_encoded_text(start: bytes) -> bool:
    """Whether bytes that begin like this are the base64 text of an image."""
    return image_format(start) is None and image_format(base64_start(start)) is not None


def base64_start(text: bytes) -> bytes:
    """The first bytes that a base64 text stands for; empty where it is none."""
    body = without_prefix(text[:START_BYTES].lstrip())
    body = body[:_BASE64_START].replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(body, validate=True) if len(body) == _BASE64_START else b""
    except binascii.Error:
        return b""


def without_prefix(text: bytes) -> bytes:
    """Returns a text without the `data:image/jpeg;base64,` before it."""
    return text.partition(b",")[2] if text[:5].lower() == b"data:" else text


def decode_base64(text: bytes) -> bytes | None:
    """What a base64 text stands for, in either alphabet, with line breaks or after `data:...,`; or None."""
    body = without_prefix(text.removeprefix(codecs.BOM_UTF8).lstrip())
    body = b"".join(body.split()).rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except binascii.Error:
        return None
