"""TFRecord files of `tf.train.Example`, as TensorFlow's datasets and img2dataset write them.

A record is a length and its checksum, then the data and theirs: little-endian uint64, masked CRC-32C, as in
TensorFlow's `tensorflow/core/lib/io/record_writer.h`. The messages are those of its
`tensorflow/core/example/example.proto` and `feature.proto`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.bare import MAX_TEXT_BYTES, Stream, to_text, unread
from boring_assets.engine.inputs.columns import IMAGE_COLUMNS
from boring_assets.engine.inputs.layouts import Image, OpenShard
from boring_assets.engine.inputs.tar import BlockReader
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import SettingsError, ShardError

# TensorFlow's own image datasets say `image/encoded`.
_IMAGE_FEATURES = (*IMAGE_COLUMNS, "image/encoded", "image_raw", "encoded")
_HEAD = struct.Struct("<QI")


@dataclass
class TFRecordShard(Stream):
    """A file of examples, a row each."""

    _names: dict[int, str] = field(default_factory=dict, init=False)

    def _read(self) -> Iterator[Image]:
        for number, record in enumerate(read_records(self.shard, self.limits)):
            row = self.row_of(f"{number:09d}")
            if row is None:
                continue
            if isinstance(record, Failure):
                yield row, record
                continue
            image = _image_name(record)
            values = {name: _value(its) for name, its in record.items() if name != image}
            self.gather(row, {name: value for name, value in values.items() if value is not None})
            if image:
                data = record[image][0]
                yield row, self.too_large(len(data)) or data
            else:
                self._names[row] = ", ".join(list(record)[:20])[:400]

    def why_absent(self, row: int) -> str:  # noqa: D102
        return f"the example has no image among its features: {self._names[row]}"


@dataclass
class TFRecordBeside(OpenShard):
    """A TFRecord file beside the parquet, as img2dataset writes it; its examples have a feature `key`."""

    def images(self) -> Iterator[Image]:  # noqa: D102
        path, uri = (
            name.removesuffix(".parquet") + ".tfrecord" for name in (self.shard.path, self.shard.uri)
        )
        rows = {key: row for row, key in reversed(list(enumerate(self.column("key")))) if key is not None}
        left = dict.fromkeys(range(self.rows.num_rows))
        for record in read_records(replace(self.shard, path=path, uri=uri), self.limits):
            if isinstance(record, Failure):
                continue  # whose it is cannot be told; its row is among those that are left
            row = rows.get(str(_value(record.get("key", []))))
            data = _image(record)
            if row is None or row not in left or data is None:
                continue
            del left[row]
            yield row, self.too_large(len(data)) or data
        for row in left:
            yield row, self.absent(row, "the TFRecord file has no image of this key")


def open_tfrecord(shard: Shard, limits: Limits, most_rows: int | None = None) -> TFRecordShard:
    """Opens a TFRecord file, of which nothing is read yet.

    Args:
        shard: The file.
        limits: The most that one image, and all rows, may cost.
        most_rows: Take only so many rows from its start; None takes all.

    Returns:
        A stream; its rows have each feature that is one number or text, or a list of them as JSON; a `key` in
        any case.
    """
    return TFRecordShard(*unread(shard, limits, most_rows))


def read_records(shard: Shard, limits: Limits) -> Iterator[dict[str, list[Any]] | Failure]:
    """Yields the features of each example, or why a record is passed over.

    Raises:
        ShardError: The file is damaged, or a record is no example.
        SettingsError: The package that checks its checksums is not installed.
    """
    try:
        from google_crc32c import value as crc32c
    except ImportError as error:
        raise SettingsError(
            f'{shard.uri} needs google-crc32c: pip install "boring_assets[tfrecord]".'
        ) from error
    most = limits.bytes + MAX_TEXT_BYTES
    try:
        reader = BlockReader(shard.fs, shard.path)
        try:
            number = 0
            while head := reader.read(_HEAD.size):
                if len(head) < _HEAD.size or _masked(crc32c(head[:8])) != _HEAD.unpack(head)[1]:
                    raise _damaged(shard, number)
                length = _HEAD.unpack(head)[0]
                if length > most:
                    if reader.skip(length + 4) < length + 4:
                        raise _damaged(shard, number)
                    yield Failure(Reason.TOO_LARGE, f"a record of {length} bytes; the limit is {most}")
                else:
                    data, check = reader.read(length), reader.read(4)
                    if check != struct.pack("<I", _masked(crc32c(data))):
                        raise _damaged(shard, number)
                    yield _features(data, shard, number)
                number += 1
        finally:
            reader.close()
    except OSError as error:
        raise ShardError(f"{shard.uri} cannot be read: {error}.") from error


def _masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _damaged(shard: Shard, number: int) -> ShardError:
    return ShardError(
        f"{shard.uri} is no TFRecord file, or is damaged: record {number} has a wrong length or checksum. "
        "Compressed ones must be unpacked before."
    )


def _features(data: bytes, shard: Shard, number: int) -> dict[str, list[Any]]:
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(data)
    except DecodeError as error:
        raise ShardError(f"Record {number} of {shard.uri} is no tf.train.Example: {error}.") from error
    return {
        name: list(getattr(feature, kind).value)
        for name, feature in example.features.feature.items()
        if (kind := feature.WhichOneof("kind"))
    }


@cache
def _example_class() -> Any:
    """The message `tf.train.Example`, without TensorFlow."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="boring_example.proto", package="boring", syntax="proto3")

    def message(name: str, into: Any = file.message_type) -> Any:
        into.add(name=name)
        return into[-1]

    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        message(name).field.add(name="value", number=1, label=field.LABEL_REPEATED, type=kind)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), 1):
        kind = f".boring.{name.title().replace('_', '')}"
        feature.field.add(
            name=name, number=number, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE, type_name=kind,
            oneof_index=0,
        )  # fmt: skip
    features = message("Features")
    entry = message("FeatureEntry", features.nested_type)
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    entry.field.add(
        name="value",
        number=2,
        label=field.LABEL_OPTIONAL,
        type=field.TYPE_MESSAGE,
        type_name=".boring.Feature",
    )
    features.field.add(
        name="feature", number=1, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE,
        type_name=".boring.Features.FeatureEntry",
    )  # fmt: skip
    message("Example").field.add(
        name="features", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE,
        type_name=".boring.Features",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("boring.Example"))


def _image_name(record: dict[str, list[Any]]) -> str | None:
    for name in _IMAGE_FEATURES:
        if name in record and len(record[name]) == 1 and isinstance(record[name][0], bytes):
            return name
    return None


def _image(record: dict[str, list[Any]]) -> bytes | None:
    name = _image_name(record)
    return record[name][0] if name else None


def _value(values: list[Any]) -> Any:
    """One value as it is, several as JSON text; None for what is neither text nor numbers, or too long."""
    import json

    if sum(len(value) if isinstance(value, bytes) else 8 for value in values) > MAX_TEXT_BYTES:
        return None
    plain = [to_text(value) if isinstance(value, bytes) else value for value in values]
    if None in plain or not plain:
        return None
    return plain[0] if len(plain) == 1 else json.dumps(plain)
