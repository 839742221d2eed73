"""Shards as the usual libraries write them: which columns are read, and what stays out of the output."""

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.samples import Reason
from boring_assets.errors import ShardError
from tests.engine.kinds import encoded, jpeg, picture, write_tar
from tests.engine.opening import read

JPEGS = [jpeg(seed) for seed in range(4)]
MASK = encoded(picture(32, 32), "PNG")


def test_pandas_with_keys_that_became_floats(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"key": [1, None, 3], "caption": ["a", None, 7.0], "n": [1, 2, 3]})
    frame["caption"] = frame["caption"].astype(str)
    frame.to_parquet(tmp_path / "0.parquet")
    write_tar(tmp_path / "0.tar", [("000001.jpg", JPEGS[0]), ("3.jpg", JPEGS[1])])
    opened, images = read(tmp_path)
    assert opened.column("key") == ["1", None, "3"]
    assert [images[0], images[2]] == JPEGS[:2]
    assert images[1].reason is Reason.MISSING_IMAGE


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.uint8()), pa.list_(pa.int64()), pa.large_list(pa.int8())], ids=str
)
def test_lists_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    signed = kind.value_type == pa.int8()
    rows = [[byte - 256 if signed and byte > 127 else byte for byte in image] for image in JPEGS]
    pq.write_table(pa.table({"pic": pa.array([*rows, None, []], kind)}), tmp_path / "0.parquet")
    _, images = read(tmp_path, image="pic")
    assert images[:4] == JPEGS
    assert [image.reason for image in images[4:]] == [Reason.MISSING_IMAGE] * 2


def test_base64_text_of_every_kind(tmp_path: Path) -> None:
    plain = base64.b64encode(JPEGS[0]).decode()
    texts = [
        plain,
        base64.encodebytes(JPEGS[0]).decode(),
        f"data:image/jpeg;base64,{plain}",
        base64.urlsafe_b64encode(JPEGS[0]).decode().rstrip("="),
        "images/0.jpg",
        None,
        "",
    ]
    pq.write_table(pa.table({"b64": texts, "key": list("abcdefg")}), tmp_path / "0.parquet")
    _, images = read(tmp_path, image="b64")
    assert images[:4] == [JPEGS[0]] * 4
    assert [image.reason for image in images[4:]] == [
        Reason.DECODE_ERROR, Reason.MISSING_IMAGE, Reason.MISSING_IMAGE,
    ]  # fmt: skip
    assert "BORING_URL_COLUMN" in images[4].detail


def test_polars_and_duckdb_columns_of_unusual_names_are_found_by_their_bytes(tmp_path: Path) -> None:
    import duckdb
    import polars as pl

    frame = pl.DataFrame(
        {"id": [1, 2], "Foto": JPEGS[:2], "hash": [b"\x01\x02", b"\x03"], "tags": [["a"], ["b"]]}
    )
    (tmp_path / "polars").mkdir()
    frame.write_parquet(tmp_path / "polars" / "0.parquet")
    (tmp_path / "duckdb").mkdir()
    duckdb.sql(f"COPY (FROM frame) TO '{tmp_path}/duckdb/0.parquet' (FORMAT parquet)")
    for name in ("polars", "duckdb"):
        opened, images = read(tmp_path / name, key="id")
        assert images == JPEGS[:2]
        assert opened.column("key") == ["1", "2"]
        assert opened.rows.column_names == ["id", "hash", "tags"]
        assert "'Foto'" in opened.notes[0]


def test_the_datasets_library_with_two_image_features(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image, Sequence, Value

    features = Features(
        {
            "mask": Image(),
            "image": Image(),
            "extra": Sequence(Image()),
            "sentences": Sequence(Value("string")),
        }
    )
    masks = [{"bytes": MASK, "path": "m.png"}] * 2
    rows = {
        "mask": masks,
        "image": [{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(JPEGS[:2])],
        "extra": [masks, []],
        "sentences": [["one", "two"], []],
    }
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "0.parquet"))
    opened, images = read(tmp_path, caption="sentences")
    assert images == JPEGS[:2]
    assert opened.column("caption") == ["one", None]
    assert opened.rows["image_path"].to_pylist() == ["0.jpg", "1.jpg"]
    assert not {"mask", "extra", "image"} & set(opened.rows.column_names)
    _, images = read(tmp_path, image="mask")
    assert images == [MASK] * 2
    opened, _ = read(tmp_path, keep_images=True)
    assert {"mask", "extra"} <= set(opened.rows.column_names)
    _, images = read(tmp_path, image="extra")
    assert [image.detail for image in images] == [
        "the row has 2 images; one is expected. Write a row for each of them.",
        "the list of images is empty",
    ]


_HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_WIDTH = max(map(len, JPEGS))
_BASE64 = [base64.b64encode(image) for image in JPEGS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(JPEGS).dictionary_encode(),
        pa.array([image.ljust(_WIDTH, b"\0") for image in JPEGS], pa.binary(_WIDTH)),
        pa.array([{"data": image, "name": "a.jpg"} for image in JPEGS]),
        pa.array(_BASE64),
        pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "blob", "a database"), pa.array(JPEGS)),
    ],
    ids=["dictionary", "fixed size", "struct of other names", "base64 in bytes", "extension"],
)
def test_bytes_of_every_type(tmp_path: Path, column: pa.Array) -> None:
    """Of a usual name, of another one, and named by the setting."""
    for number, (name, named) in enumerate((("jpg", ""), ("photo", ""), ("photo", "photo"))):
        (tmp_path / str(number)).mkdir()
        pq.write_table(pa.table({name: column, "n": [1, 2, 3, 4]}), tmp_path / str(number) / "0.parquet")
        opened, images = read(tmp_path / str(number), image=named)
        assert [image[: len(JPEGS[row])] for row, image in enumerate(images)] == JPEGS
        assert opened.rows.column_names == ["n"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[image] for image in JPEGS], pa.list_(pa.binary())),
        pa.array([[{"bytes": image, "path": None}] for image in JPEGS], pa.large_list(_HF)),
        pa.array([list(image) for image in JPEGS], pa.list_(pa.uint8())),
        pa.array([image.decode() for image in _BASE64]).dictionary_encode(),
        pa.array([{"bytes": image.decode(), "path": "a.jpg"} for image in _BASE64]),
    ],
    ids=["list of one", "list of one struct", "numbers", "dictionary of base64", "struct of base64"],
)
def test_what_an_error_says_to_set_works(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"pic": column, "n": [1, 2, 3, 4]}), tmp_path / "0.parquet")
    with pytest.raises(ShardError, match=r"'pic', 'n'.*set BORING_IMAGE_COLUMN=pic\."):
        read(tmp_path)
    opened, images = read(tmp_path, image="pic")
    assert images == JPEGS
    assert {"pic"} & set(opened.rows.column_names) == set()


def test_no_encoded_image_reaches_the_output_whatever_it_is_wrapped_in(tmp_path: Path) -> None:
    """Also one that comes after many values that are none."""
    text = base64.b64encode(MASK).decode()
    late = [b"placeholder" * 9] * 99 + [MASK]
    wrapped = {
        "crops": pa.array([[{"img": MASK, "box": [1, 2]}]] * 100),
        "deep": pa.array([{"a": {"b": MASK, "c": b"x"}}] * 100),
        "by_name": pa.array([[("thumb", MASK)]] * 100, pa.map_(pa.string(), pa.binary())),
        "fixed": pa.array([MASK] * 100, pa.binary(len(MASK))),
        "dictionary": pa.array([MASK] * 100).dictionary_encode(),
        "view": pa.array([MASK] * 100, pa.binary_view()),
        "numbers": pa.array([list(MASK)] * 100, pa.list_(pa.uint8())),
        "late": pa.array(late),
        "late_text": pa.array(["a caption of several words " * 9] * 99 + [text]),
        "texts": pa.array([[text]] * 100),
        "data_uri": pa.array([f"data:image/png;base64,{text}"] * 100),
    }
    kept = {
        "box": pa.array([[255, 10, 30, 40]] * 100),
        "tokens": pa.array([list(range(77))] * 100),
        "digest": pa.array([bytes(range(row, row + 32)) for row in range(100)]),
        "hex": pa.array(["0123456789abcdef" * 8] * 100),
        "scores": pa.array([b"x", b"\xff\xd8\xff" + bytes(40), *[b"\xff\x0a" + bytes(40)] * 98]),
    }
    pq.write_table(pa.table({"jpg": [JPEGS[0]] * 100, **wrapped, **kept}), tmp_path / "0.parquet")
    opened, _ = read(tmp_path)
    assert opened.rows.column_names == list(kept)
    assert ", ".join(sorted(wrapped)) in opened.notes[0]
    opened, _ = read(tmp_path, keep_images=True)
    assert opened.rows.column_names == [*wrapped, *kept]


def test_images_deep_inside_a_column_are_named(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": image, "path": "a.jpg"}, "label": 1} for image in JPEGS]
    pq.write_table(pa.table({"sample": rows}), tmp_path / "0.parquet")
    with pytest.raises(ShardError, match=r"'sample' holds images inside struct.*column of their own"):
        read(tmp_path)


def test_the_name_in_lower_case_comes_before_others(tmp_path: Path) -> None:
    columns = {"Image": [MASK], "image": [JPEGS[0]], "KEY": ["A"], "key": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    opened, images = read(tmp_path)
    assert images == JPEGS[:1]
    assert opened.column("key") == ["a"]


def test_encoded_images_in_text_stay_out_of_the_output(tmp_path: Path) -> None:
    text = [base64.b64encode(image).decode() for image in JPEGS]
    pq.write_table(
        pa.table({"image": JPEGS, "thumbnail": text, "note": text[:1] * 3 + ["x"]}), tmp_path / "0.parquet"
    )
    opened, _ = read(tmp_path)
    assert opened.rows.column_names == []
    assert "note, thumbnail" in opened.notes[0]


def test_null_and_empty_images_are_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [None, b"", JPEGS[0]]}), tmp_path / "0.parquet")
    _, images = read(tmp_path)
    assert [image.reason for image in images[:2]] == [Reason.MISSING_IMAGE] * 2


def test_text_that_is_not_utf8_is_null_also_inside_lists(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"ab\xffc")]
    )
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), bad)
    pq.write_table(
        pa.table({"jpg": JPEGS[:3], "caption": bad, "title": bad, "all": lists}), tmp_path / "0.parquet"
    )
    opened, images = read(tmp_path)
    assert images == JPEGS[:3]
    assert opened.column("caption") == ["a", None, "c"]
    assert opened.rows["title"].to_pylist() == ["a", None, "c"]
    assert opened.rows["all"].to_pylist() == [["a"], [None], ["c"]]


def test_paths_beside_a_shard_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").write_bytes(JPEGS[0])
    column = [
        {"bytes": None, "path": "a.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": b"", "path": "../x"},
    ]
    pq.write_table(pa.table({"image": column}), tmp_path / "data" / "0.parquet")
    _, images = read(tmp_path)
    assert images[0] == JPEGS[0]
    assert [image.reason for image in images[1:]] == [Reason.MISSING_IMAGE, Reason.NOT_ALLOWED]
    assert "only the path 'gone.jpg'" in images[1].detail


def test_only_img2datasets_status_says_that_a_download_failed(tmp_path: Path) -> None:
    columns = {
        "jpg": pa.array([None] * 4, pa.binary()),
        "status": [b"failed_to_resize", b"ok", b"success", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    _, images = read(tmp_path)
    missing = Reason.MISSING_IMAGE
    assert [image.reason for image in images] == [Reason.NOT_DOWNLOADED, *[missing] * 3]
    assert images[0].detail == "failed_to_resize"


def test_the_caption_in_a_map_is_a_value_of_it(tmp_path: Path) -> None:
    captions = pa.array([[("en", "dog"), ("de", "Hund")], [], None], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"jpg": JPEGS[:3], "caption": captions}), tmp_path / "0.parquet")
    assert read(tmp_path)[0].column("caption") == ["dog", None, None]


def test_urls_that_hold_their_image(tmp_path: Path) -> None:
    """It is embedded, and the output has no such URL."""
    (tmp_path / "c.jpg").write_bytes(JPEGS[2])
    urls = [
        f"data:image/jpeg;base64,{_BASE64[0].decode()}",
        f"DATA:,{_BASE64[1].decode()}",
        "c.jpg",
        "data:,?",
    ]
    pq.write_table(pa.table({"url": urls, "key": list("abcd")}), tmp_path / "0.parquet")
    opened, images = read(tmp_path)
    assert images[:3] == JPEGS[:3]
    assert images[3].reason is Reason.DECODE_ERROR
    assert opened.column("url") == [None, None, "c.jpg", None]
    pq.write_table(pa.table({"url": urls, "jpg": JPEGS}), tmp_path / "0.parquet")
    opened, images = read(tmp_path)
    assert images == JPEGS
    assert opened.column("url") == [None, None, "c.jpg", None]


def test_a_list_of_urls_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEGS[0])
    pq.write_table(pa.table({"url": [["a.jpg", "b.jpg"]]}), tmp_path / "0.parquet")
    with pytest.raises(ShardError, match=r"'url' holds several values a row.* BORING_URL_COLUMN=url\."):
        read(tmp_path)
    assert read(tmp_path, url="url")[1] == JPEGS[:1]


def test_a_shard_of_nothing_but_nulls(tmp_path: Path) -> None:
    """pandas and pyarrow write a column of nulls without a type."""
    pq.write_table(pa.table({"image": pa.nulls(2), "text": ["a", "b"]}), tmp_path / "0.parquet")
    for name in ("", "image"):
        opened, images = read(tmp_path, image=name)
        assert [image.reason for image in images] == [Reason.MISSING_IMAGE] * 2
        assert opened.column("caption") == ["a", "b"]
    (tmp_path / "c.jpg").write_bytes(JPEGS[2])
    pq.write_table(pa.table({"image": pa.nulls(1), "url": ["c.jpg"]}), tmp_path / "0.parquet")
    assert read(tmp_path)[1] == [JPEGS[2]]


def test_keys_in_bytes_that_are_no_text_are_hexadecimal(tmp_path: Path) -> None:
    keys = pa.array([b"\xff" * 4, b"abcd", None], pa.binary(4))
    pq.write_table(pa.table({"jpg": JPEGS[:3], "key": keys, "caption": keys}), tmp_path / "0.parquet")
    opened, _ = read(tmp_path)
    assert opened.column("key") == ["ffffffff", "abcd", None]
    assert opened.column("caption") == [None, "abcd", None]
