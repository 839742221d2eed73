"""Tars and TFRecord files without a parquet: their rows, their images, what is wrong with damaged ones."""

import base64
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import Limits, OpenShard, open_shard
from boring_assets.engine.inputs.streamed import to_table
from boring_assets.engine.inputs.tfrecord import _example_class
from boring_assets.engine.samples import ColumnNames, Failure, Reason
from boring_assets.errors import ShardError
from tests.engine.kinds import jpeg, shard_at, write_tar

DATA = Path(__file__).parents[1] / "data"


def opened(path: Path, limits: Limits | None = None, **options: int) -> tuple[OpenShard, list[Any]]:
    """A shard and its images by row; each row must be answered exactly once."""
    shard = open_shard(shard_at(path), limits or Limits(), Fetcher(), **options)
    found = list(shard.images())
    assert sorted(row for row, _ in found) == list(range(shard.rows.num_rows))
    return shard, [image for _, image in sorted(found, key=lambda pair: pair[0])]


def test_a_tar_that_img2dataset_wrote_needs_no_parquet(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "webdataset" / "00000.tar", tmp_path / "00000.tar")
    bare, images = opened(tmp_path / "00000.tar")
    beside, theirs = opened(shared_data / "webdataset" / "00000.parquet")
    rows = {row["key"]: row for row in beside.rows.to_pylist() if row["status"] == "success"}
    assert {row["key"] for row in bare.rows.to_pylist()} == set(rows)
    by_key = dict(zip(beside.column("key"), theirs, strict=True))
    for row, image in zip(bare.rows.to_pylist(), images, strict=True):
        assert image == by_key[row["key"]]
        for name in ("url", "width", "original_height", "status"):
            assert row[name] == rows[row["key"]][name]
    assert bare.column("caption") == [rows[key]["caption"] for key in bare.column("key")]


def test_every_image_of_a_tar_is_a_row(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar",
        [
            ("./a/1.jpg", b"one"),
            ("./a/1.seg.png", b"mask"),
            ("./a/1.txt", b"ein Bild"),
            ("./a/1.json", b'{"url": "https://example.com/1", "size": [1, 2], "score": 1}'),
            ("a/2.json", b'{"score": 0.5, "key": "not this", "caption": "from json"}'),
            ("a/3.PNG", b"three"),
            ("a/3.jpg", b"a second image"),
            ("a/3.txt", b"\xff\xfe"),
            ("a/.hidden.jpg", b"x"),
            ("a/3.json", b'["no", "object"]'),
            ("a/4.jpg", b"x" * 100),
        ],
    )
    shard, images = opened(tmp_path / "0.tar", Limits(bytes=99))
    assert shard.column("key") == ["a/1", "a/1.seg", "a/3", "a/3", "a/4", "a/2"]
    assert shard.column("caption") == ["ein Bild", "ein Bild", None, None, None, "from json"]
    assert shard.column("url") == ["https://example.com/1"] * 2 + [None] * 4
    assert shard.rows["score"].to_pylist() == [1.0, 1.0, None, None, None, 0.5]
    assert shard.rows["size"].to_pylist() == ["[1, 2]"] * 2 + [None] * 4
    assert images[:4] == [b"one", b"mask", b"three", b"a second image"]
    assert [image.reason for image in images[4:]] == [Reason.TOO_LARGE, Reason.MISSING_IMAGE]
    assert opened(tmp_path / "0.tar", max_rows=1)[0].cut == 5


def test_a_tar_without_images_is_no_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("notes.txt", b"text")])
    with pytest.raises(ShardError, match="holds no image"):
        opened(tmp_path / "0.tar")
    (tmp_path / "1.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ShardError, match="is not a tar"):
        opened(tmp_path / "1.tar")


def test_hostile_json_takes_no_more_memory_than_its_text(tmp_path: Path) -> None:
    texts = [
        b"[" * 100_000,
        b'{"a": ' * 50_000,
        b'{"n": 1e999, "big": 123456789012345678901234567890}',
        b'{"half": "\\ud800", "\\udfff": 1}',
        b'{"n": NaN, "big": 1}',
        b"\xff",
    ]
    members = [(f"{row}.{kind}", data) for row, text in enumerate(texts) for kind, data in
               (("jpg", b"image"), ("json", text))]  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    shard, images = opened(tmp_path / "0.tar")
    assert images == [b"image"] * len(texts)
    shard.rows.validate(full=True)
    assert shard.rows["big"].to_pylist()[2] == "123456789012345678901234567890"
    wide = json.dumps({f"column-{number}": 1 for number in range(10_000)}).encode()
    write_tar(tmp_path / "1.tar", [("0.jpg", b"image"), ("0.json", wide)])
    with pytest.raises(ShardError, match="10002 different names"):
        opened(tmp_path / "1.tar")


def test_columns_of_mixed_kinds_become_text() -> None:
    values = [
        {"a": 1, "b": True, "c": 1},
        {"a": "x", "b": None, "c": 2.5},
        {"a": None, "b": False, "c": None},
    ]
    table = to_table(values, (), "u", Limits())
    assert table.to_pydict() == {"a": ["1", "x", None], "b": [True, None, False], "c": [1.0, 2.5, None]}


def example(**features: Any) -> bytes:
    message = _example_class()()
    for name, value in features.items():
        feature = message.features.feature[name.replace("__", "/")]
        values = value if isinstance(value, list) else [value]
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(feature, kind).value.extend(values)
    return message.SerializeToString()


def framed(data: bytes) -> bytes:
    def check(part: bytes) -> bytes:
        crc = google_crc32c.value(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + check(length) + data + check(data)


def test_a_file_that_tensorflow_wrote(tmp_path: Path) -> None:
    """`data/tensorflow.tfrecord` was written by TensorFlow 2.21's TFRecordWriter; see `data/README.md`."""
    shard, images = opened(DATA / "tensorflow.tfrecord")
    assert images == [b"\xff\xd8 first", b"\xff\xd8 second"]
    assert shard.column("key") == ["a", "b"]
    assert shard.column("caption") == ["ein Bild", "deux"]
    assert shard.rows["width"].to_pylist() == [640, -1]
    assert shard.rows["score"].to_pylist() == [0.5, 0.25]
    assert shard.rows["labels"].to_pylist() == ["[1, 2, 3]", None]


def test_images_as_base64_in_a_tfrecord(tmp_path: Path) -> None:
    image, mask = jpeg(1), base64.b64encode(jpeg(2))
    records = [example(image=base64.b64encode(image), mask=mask), example(image=image, mask=mask), example()]
    (tmp_path / "0.tfrecord").write_bytes(b"".join(map(framed, records)))
    shard, images = opened(tmp_path / "0.tfrecord")
    assert images[:2] == [image, image]
    assert images[2] == Failure(
        Reason.MISSING_IMAGE, "the example has no image among its features: it has none"
    )
    assert shard.rows.column_names == ["key"]


def test_several_images_in_one_feature_fail_as_what_they_are(tmp_path: Path) -> None:
    record = _example_class()()
    record.features.feature["views"].bytes_list.value.extend([jpeg(1), jpeg(2)])
    (tmp_path / "0.tfrecord").write_bytes(framed(record.SerializeToString()) + framed(example(views=jpeg(1))))
    path = tmp_path / "0.tfrecord"
    shard = open_shard(replace(shard_at(path), columns=ColumnNames(image="views")), Limits(), Fetcher())
    images = dict(shard.images())
    assert isinstance(images[0], Failure)
    assert "the record has 2 images" in images[0].detail
    assert images[1] == jpeg(1)
    assert shard.rows.column_names == ["key"]


def test_examples_are_rows_and_their_features_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.tfrecord-00000-of-00002"
    records = [
        example(image__encoded=b"one", image__class__label=7, raw=b"\xff\xfe"),
        example(image__class__label=8),
        example(image__encoded=b"x" * 100),
        b"",
        example(image__encoded=b"x" * (2 << 20)),
    ]
    path.write_bytes(b"".join(map(framed, records)))
    shard, images = opened(path, Limits(bytes=99))
    assert images[0] == b"one"
    reasons = [image.reason for image in images[1:]]
    assert reasons == [Reason.MISSING_IMAGE, Reason.TOO_LARGE, Reason.MISSING_IMAGE, Reason.TOO_LARGE]
    assert shard.column("key") == [f"{row:09d}" for row in range(5)]
    assert shard.rows["image/class/label"].to_pylist() == [7, 8, None, None, None]
    assert "raw" not in shard.rows.column_names
    shard, images = opened(path, max_rows=2)
    assert (shard.cut, len(images)) == (3, 2)


@pytest.mark.parametrize("at", [0, 9, 20, -1])
def test_a_flipped_bit_of_a_tfrecord_fails_the_shard(tmp_path: Path, at: int) -> None:
    content = bytearray(framed(example(image=b"one", key=b"a")) * 2)
    content[at] ^= 1
    (tmp_path / "0.tfrecord").write_bytes(content)
    with pytest.raises(ShardError, match="is damaged"):
        opened(tmp_path / "0.tfrecord")


@pytest.mark.parametrize("left", [1, 11, 12, 30, -1])
def test_a_tfrecord_that_ends_early_fails_the_shard(tmp_path: Path, left: int) -> None:
    (tmp_path / "0.tfrecord").write_bytes(framed(example(image=b"one", key=b"a"))[:left])
    with pytest.raises(ShardError, match="is damaged"):
        opened(tmp_path / "0.tfrecord")


def test_a_record_that_is_not_an_example_fails_the_shard(tmp_path: Path) -> None:
    (tmp_path / "0.tfrecord").write_bytes(framed(b"\x0a\xff\xff\xff\xff\xff"))
    with pytest.raises(ShardError, match=r"not a tf\.train\.Example"):
        opened(tmp_path / "0.tfrecord")


def test_a_tfrecord_beside_a_parquet_as_img2dataset_writes_it(tmp_path: Path) -> None:
    rows = {
        "key": ["1", "2", "3"],
        "url": ["u"] * 3,
        "status": ["success", "success", "failed_to_download"],
        "error_message": [None, None, "HTTP Error 404"],
    }
    pq.write_table(pa.table(rows), tmp_path / "00000.parquet")
    (tmp_path / "00000.tfrecord").write_bytes(
        framed(example(key=b"2", jpg=b"two")) + framed(example(key=b"1", jpg=b"one", url=b"u"))
    )
    _, images = opened(tmp_path / "00000.parquet")
    assert images[:2] == [b"one", b"two"]
    assert images[2] == Failure(Reason.NOT_DOWNLOADED, "failed_to_download: HTTP Error 404")
    with (tmp_path / "00000.tfrecord").open("ab") as file:
        file.write(framed(example(key=b"9", jpg=b"nine")))
    shard, _ = opened(tmp_path / "00000.parquet")
    assert shard.notes == [
        "Images of the TFRecord file that have no row in the parquet, and are not embedded: 1."
    ]
