"""TFRecord files of `tf.train.Example`, as TensorFlow's datasets and img2dataset write them.

A record is a length and its checksum, then the data and theirs: little-endian uint64, masked CRC-32C, as in
TensorFlow's `tensorflow/core/lib/io/record_writer.h`. The messages are those of its
`tensorflow/core/example/example.proto` and `feature.proto`.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from boring_assets.engine.decoding.limits import Limits, image_format
from boring_assets.engine.inputs.columns import CAPTION_TEXT, IMAGE_COLUMNS, ambiguous_images, missing_column
from boring_assets.engine.inputs.layouts import Image, OpenShard, RowsByKey
from boring_assets.engine.inputs.read_ahead import open_blocks
from boring_assets.engine.inputs.streamed import MAX_TEXT_BYTES, Record, StreamedShard, caption_in
from boring_assets.engine.inputs.texts import to_text
from boring_assets.engine.samples import ColumnNames, Failure, Reason, Shard
from boring_assets.errors import SettingsError, ShardError

# TensorFlow's own image datasets say `image/encoded`.
_IMAGE_FEATURES = (*IMAGE_COLUMNS, "image/encoded", "image_raw", "encoded")
_MAX_FEATURES = 1000
Example = dict[str, list[Any]]
_HEAD = struct.Struct("<QI")
_PROTO = """
name: "boring_example.proto" package: "boring" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature"
  oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".boring.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".boring.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: ".boring.Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED
    type: TYPE_MESSAGE type_name: ".boring.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry"
    options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".boring.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".boring.Features" }
}
"""
"""The messages of `tf.train.Example`, as a protobuf FileDescriptorProto in text."""


@dataclass
class TFRecordShard(StreamedShard):
    """A file of examples, a row each.

    Its rows have each feature that is one number or text, or a list of them as JSON; a `key` in any case.
    """

    _rows: list[Record] = field(default_factory=list, init=False)
    _features: dict[int, str] = field(default_factory=dict, init=False)
    _seen: set[str] = field(default_factory=set, init=False)

    def _read(self) -> Iterator[Image]:
        names = self.shard.columns
        for row, example in enumerate(read_records(self.shard, self.limits)):
            key = f"{row:09d}"
            self._count(key, rows=1)
            self._rows.append({"key": key})
            if self.max_rows is not None and row >= self.max_rows:
                continue
            if isinstance(example, Failure):
                yield row, example
                continue
            image = image_feature(example, names, self.shard.uri)
            if len(self._seen) < _MAX_FEATURES:
                self._seen.update(example)
            self._add_values(row, {name: values for name, values in example.items() if name != image})
            if image:
                yield row, self.from_bytes(row, example[image][0])
            elif (count := len(example.get(names.image, []))) > 1:
                detail = f"the record has {count} images; one is expected. Write a record for each of them."
                yield row, Failure(Reason.DECODE_ERROR, detail)
            else:
                self._features[row] = ", ".join(list(example)[:20])[:400]
        if names.image and self._seen and names.image not in self._seen:
            raise ShardError(missing_column(names.image, "image", self._seen, self.shard.uri, "feature"))

    def _add_values(self, row: int, features: Example) -> None:
        keep_images = self.shard.columns.keep_images
        texts = {
            name: [to_text(value) if isinstance(value, bytes) else value for value in values]
            for name, values in features.items()
            if keep_images or not any(isinstance(value, bytes) and image_format(value) for value in values)
        }
        caption = caption_in(
            {name: values for name, values in texts.items() if len(values) > 1}, self.shard.columns
        )
        values = {name: single_value(features[name]) for name in texts}
        new = {name: value for name, value in values.items() if value is not None}
        if caption is not None:
            new[CAPTION_TEXT] = caption
        self._rows[row] |= new
        self._count(*new, *new.values())

    def _records(self) -> list[Record]:
        if any(CAPTION_TEXT in record for record in self._rows):  # others have one text under the usual name
            for record in self._rows:
                record.setdefault(CAPTION_TEXT, caption_in(record, self.shard.columns))
        return self._rows

    def why_absent(self, row: int) -> str:  # noqa: D102
        return f"the example has no image among its features: {self._features[row] or 'it has none'}"


@dataclass
class TFRecordBeside(OpenShard):
    """A TFRecord file beside the parquet, as img2dataset writes it; its examples have a feature `key`."""

    def images(self) -> Iterator[Image]:  # noqa: D102
        beside = self.shard.beside(".tfrecord")
        rows = RowsByKey(self)
        left = dict.fromkeys(range(self.rows.num_rows))
        for example in read_records(beside, self.limits):
            if isinstance(example, Failure):
                continue  # its key is not known; its row is among those that are left
            row = rows.find(str(single_value(example.get("key", []))))
            image = image_feature(example, self.shard.columns, beside.uri)
            rows.without_row += row is None and image is not None
            if row is None or row not in left or image is None:
                continue
            del left[row]
            yield row, self.from_bytes(row, example[image][0])
        self.notes += rows.finish("TFRecord file", beside.uri)
        for row in left:
            yield row, self.absent(row, "the TFRecord file has no image of this key")


def read_records(shard: Shard, limits: Limits) -> Iterator[Example | Failure]:
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
        reader = open_blocks(shard.fs, shard.path)
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
        f"{shard.uri} is not a TFRecord file, or is damaged: record {number} has a wrong length or checksum. "
        "Compressed ones must be unpacked before."
    )


def _features(data: bytes, shard: Shard, number: int) -> Example:
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(data)
    except DecodeError as error:
        raise ShardError(f"Record {number} of {shard.uri} is not a tf.train.Example: {error}.") from error
    return {
        name: list(getattr(feature, kind).value)
        for name, feature in example.features.feature.items()
        if (kind := feature.WhichOneof("kind"))
    }


@cache
def _example_class() -> Any:
    """The message `tf.train.Example`, without TensorFlow."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("boring.Example"))


def image_feature(example: Example, names: ColumnNames, uri: str) -> str | None:
    """The feature that holds the image, or None; raises ShardError for several without a usual name."""
    single = [name for name, values in example.items() if len(values) == 1 and isinstance(values[0], bytes)]
    if names.image:
        return names.image if names.image in single else None
    for name in _IMAGE_FEATURES:
        if name in single:
            return name
    images = [name for name in single if image_format(example[name][0])]
    if len(images) > 1:
        raise ShardError(ambiguous_images(images, uri, "features"))
    return images[0] if images else None


def single_value(values: list[Any]) -> Any:
    """One value as it is, several as JSON text; None for what is not text or numbers, or too long."""
    if sum(len(value) if isinstance(value, bytes) else 8 for value in values) > MAX_TEXT_BYTES:
        return None
    plain = [to_text(value) if isinstance(value, bytes) else value for value in values]
    if None in plain or not plain:
        return None
    return plain[0] if len(plain) == 1 else json.dumps(plain)
