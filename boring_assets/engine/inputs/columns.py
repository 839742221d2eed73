"""Which columns of a shard hold its images, URLs, keys and captions."""

import pyarrow as pa

# img2dataset names the bytes column after the encode format; others call it `image`.
IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes")
# Names of the three columns that the output always has, in the order of preference, lower case.
ALIASES = {
    "url": ("url", "image_url", "image_link"),
    "key": ("key", "__key__"),
    "caption": ("caption", "text", "alt_text", "alt"),
}


def find_columns(schema: pa.Schema) -> dict[str, str]:
    """Which columns are a shard's `url`, `key` and `caption`, by their names in any case."""
    lower = {name.lower(): name for name in reversed(schema.names)}
    found = {}
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in lower and not pa.types.is_nested(schema.field(lower[alias]).type):
                found[name] = lower[alias]
                break
    return found


def find_image_column(schema: pa.Schema) -> str | None:
    """A binary column of a known name, else a Hugging Face image struct `{bytes, path}`."""
    for name in IMAGE_COLUMNS:
        if name in schema.names and _is_binary(schema.field(name).type):
            return name
    for column in schema:
        fields = {field.name: field.type for field in column.type} if pa.types.is_struct(column.type) else {}
        if "bytes" in fields and _is_binary(fields["bytes"]):
            return column.name
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
