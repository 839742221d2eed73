"""Every layout in which img2dataset and its like leave images, found, and matched with their rows."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.samples import Failure, Reason
from tests.engine.kinds import shard_at, write_tar
from tests.engine.opening import DATA, KEYS, images_of, reasons, write

Images = list[bytes | Failure]


@pytest.mark.parametrize("name", ["jpg", "jpeg", "png", "webp", "image", "image_bytes", "bytes"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_images_in_a_column(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    path = write(tmp_path, **{"key": KEYS, name: pa.array([DATA[0], None, DATA[2]], kind)})
    images = images_of(path)
    assert [images[0], images[2]] == [DATA[0], DATA[2]]
    assert reasons(images) == [None, Reason.MISSING_IMAGE, None]
    assert open_shard(shard_at(path), Limits(), Fetcher()).rows.column_names == ["key"]


def test_images_in_a_hugging_face_column(tmp_path: Path) -> None:
    values = [{"bytes": b"one", "path": "1.jpg"}, None, {"bytes": None, "path": "3.jpg"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = write(tmp_path, photo=pa.array(values, kind), text=["a", "b", "c"])
    images = images_of(path)
    assert images[0] == b"one"
    assert reasons(images) == [None, Reason.MISSING_IMAGE, Reason.MISSING_IMAGE]
    opened = open_shard(shard_at(path), Limits(), Fetcher())
    assert opened.columns == {"caption": "text"}
    assert opened.rows.to_pydict() == {"text": ["a", "b", "c"], "photo_path": ["1.jpg", None, "3.jpg"]}


def test_a_parquet_of_nothing_but_images(tmp_path: Path) -> None:
    path = write(tmp_path, image=pa.array([b"%d" % row for row in range(200)]))
    assert images_of(path) == [b"%d" % row for row in range(200)]
    assert images_of(path, max_rows=70) == [b"%d" % row for row in range(70)]
    opened = open_shard(shard_at(path), Limits(), Fetcher(), 70)
    assert (opened.rows.num_rows, opened.cut) == (70, 130)
    assert opened.column("key") == [None] * 70


def test_a_tar_beside_the_parquet_in_another_order_and_with_other_members(tmp_path: Path) -> None:
    path = write(tmp_path, key=[*KEYS, "000000009"], caption=["7", "3", "5", "9"])
    extra = [("README", b"text"), ("000000004.jpg", b"of no row"), ("000000003.json", b"{}")]
    members = [(f"{key}.jpg", data) for key, data in zip(KEYS, DATA, strict=True)]
    again = ("000000003.png", b"second of its row")
    write_tar(path.with_suffix(".tar"), [*extra, *sorted(members), again, ("000000005.txt", b"five")])
    images = images_of(path)
    assert images[:3] == DATA
    assert reasons(images) == [None, None, None, Reason.MISSING_IMAGE]


def test_names_of_members_in_folders_with_dots_and_capitals(tmp_path: Path) -> None:
    path = write(tmp_path, key=["a.b", "dir/c", "été", "d"])
    names = ["./a.b.JPG", "dir/c.webp", "deep/été.Png", "x/y/d.jpeg"]
    write_tar(path.with_suffix(".tar"), [(name, name.encode()) for name in names])
    assert images_of(path) == [name.encode() for name in names]


def test_a_folder_beside_the_parquet(tmp_path: Path) -> None:
    path = write(tmp_path, key=[*KEYS, "000000009"])
    folder = tmp_path / "00000"
    folder.mkdir()
    for key, data, suffix in zip(KEYS, DATA, ("jpg", "png", "WEBP"), strict=True):
        (folder / f"{key}.{suffix}").write_bytes(data)
        (folder / f"{key}.json").write_text("{}")
    (folder / "000000004.jpg").write_bytes(b"of no row")
    images = images_of(path)
    assert images[:3] == DATA
    assert reasons(images) == [None, None, None, Reason.MISSING_IMAGE]


@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_keys_may_be_numbers_and_may_repeat(tmp_path: Path, layout: str) -> None:
    """Of two rows with one key, the first has the image: never are both answered with it."""
    path = write(tmp_path, key=pa.array([12, 7, 12, None], pa.int64()))
    members = [("7.jpg", b"seven"), ("12.jpg", b"twelve")]
    if layout == "tar":
        write_tar(path.with_suffix(".tar"), members)
    else:
        path.with_suffix("").mkdir()
        for name, data in members:
            (path.with_suffix("") / name).write_bytes(data)
    images = images_of(path)
    assert images[:2] == [b"twelve", b"seven"]
    assert reasons(images)[2:] == [Reason.MISSING_IMAGE] * 2


@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_an_image_past_the_limit_is_not_read(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, key=["a", "b"])
    members = [("a.jpg", b"x" * 101), ("b.jpg", b"y" * 100)]
    if layout == "tar":
        write_tar(path.with_suffix(".tar"), members)
    else:
        path.with_suffix("").mkdir()
        for name, data in members:
            (path.with_suffix("") / name).write_bytes(data)
    images = images_of(path, Limits(bytes=100))
    assert images == [Failure(Reason.TOO_LARGE, "101 bytes; the limit is 100"), b"y" * 100]


def test_img2datasets_own_account_of_a_missing_image(tmp_path: Path) -> None:
    status = ["failed_to_download", "failed_to_resize", "success", None]
    error = ["HTTP Error 404: Not Found", None, None, None]
    path = write(tmp_path, key=list("abcd"), status=status, error_message=error)
    write_tar(path.with_suffix(".tar"), [])
    assert images_of(path) == [
        Failure(Reason.NOT_DOWNLOADED, "failed_to_download: HTTP Error 404: Not Found"),
        Failure(Reason.NOT_DOWNLOADED, "failed_to_resize"),
        Failure(Reason.MISSING_IMAGE, "the tar has no image of this key"),
        Failure(Reason.MISSING_IMAGE, "the tar has no image of this key"),
    ]


@pytest.mark.parametrize("name", ["url", "URL", "image_url", "IMAGE_LINK"])
def test_a_parquet_with_urls_alone(tmp_path: Path, name: str) -> None:
    """LAION's upper case, and the old service's paths: relative, absolute and as URIs."""
    (tmp_path / "pictures").mkdir()
    for stem in "abc":
        (tmp_path / "pictures" / f"{stem}.jpg").write_bytes(stem.encode())
    folder = tmp_path / "pictures"
    urls = ["pictures/a.jpg", f"{folder}/b.jpg", f"file://{folder}/c.jpg", "pictures/none.jpg", None, ""]
    path = write(tmp_path, **{name: urls, "TEXT": ["caption"] * 6})
    images = images_of(path)
    assert images[:3] == [b"a", b"b", b"c"]
    assert reasons(images)[3:] == [Reason.FETCH_ERROR, Reason.MISSING_IMAGE, Reason.MISSING_IMAGE]
    opened = open_shard(shard_at(path), Limits(), Fetcher())
    assert opened.columns == {"url": name, "caption": "TEXT"}
    assert opened.column("key") == [None] * 6


def test_many_urls_come_in_order_and_a_refused_one_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for row in range(150):
        (tmp_path / "p" / f"{row}.jpg").write_bytes(b"%d" % row)
    path = write(tmp_path, url=[f"p/{row}.jpg" for row in range(150)] + ["/etc/passwd"])
    images = images_of(path)
    assert images[:150] == [b"%d" % row for row in range(150)]
    assert reasons(images)[150] is Reason.NOT_ALLOWED


def test_what_is_nearest_wins(tmp_path: Path) -> None:
    """A column before a tar, a tar before a folder, a folder before URLs."""
    columns = {"key": ["a"], "url": ["u.jpg"]}
    (tmp_path / "u.jpg").write_bytes(b"url")
    path = write(tmp_path, **columns)
    assert images_of(path) == [b"url"]
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "a.jpg").write_bytes(b"folder")
    assert images_of(path) == [b"folder"]
    write_tar(path.with_suffix(".tar"), [("a.jpg", b"tar")])
    assert images_of(path) == [b"tar"]
    write(tmp_path, **columns, jpg=[b"column"])
    assert images_of(path) == [b"column"]


def test_a_text_column_with_the_name_of_an_image_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    path = write(tmp_path, image=["a.jpg"], url=["a.jpg"], jpg=[7])
    assert images_of(path) == [b"a"]


@pytest.mark.parametrize("layout", ["column", "tar", "folder", "url"])
def test_only_the_first_rows_on_request(tmp_path: Path, layout: str) -> None:
    keys = [f"{row:05}" for row in reversed(range(150))]
    data = [key.encode() for key in keys]
    folder = tmp_path / ("00000" if layout == "folder" else "elsewhere")
    folder.mkdir()
    for key in keys:
        (folder / f"{key}.jpg").write_bytes(key.encode())
    columns: dict[str, object] = {"key": keys, "url": [f"elsewhere/{key}.jpg" for key in keys]}
    if layout == "column":
        columns["jpg"] = data
    path = write(tmp_path, **columns)
    if layout == "tar":
        write_tar(path.with_suffix(".tar"), ((f"{key}.jpg", key.encode()) for key in sorted(keys)))
    for most in (0, 1, 64, 149, 150, 500):
        assert images_of(path, max_rows=most) == data[:most]
        opened = open_shard(shard_at(path), Limits(), Fetcher(), most)
        assert opened.cut == max(0, 150 - most)
        opened.close()


def test_rows_can_be_picked_from_view_columns_too(tmp_path: Path) -> None:
    """Writers close to Arrow leave string views, which Arrow itself cannot pick rows from."""
    view, binary = pa.array(KEYS, pa.string_view()), pa.array(DATA, pa.binary_view())
    path = write(tmp_path, key=view, caption=view, hash=binary, jpg=binary)
    opened = open_shard(shard_at(path), Limits(), Fetcher())
    assert opened.column("key") == KEYS
    picked = opened.rows.take(pa.array([2, 0]))
    assert picked["caption"].to_pylist() == [KEYS[2], KEYS[0]]
    assert picked["hash"].to_pylist() == [DATA[2], DATA[0]]
    assert images_of(path) == DATA


def test_a_shard_without_rows(tmp_path: Path) -> None:
    for columns in (
        {"key": pa.array([], pa.string()), "jpg": pa.array([], pa.binary())},
        {"url": pa.nulls(0)},
    ):
        assert images_of(write(tmp_path, **columns)) == []


def test_real_shards_give_the_images_that_img2dataset_counted(shared_data: Path) -> None:
    for folder in ("webdataset", "files", "parquet", "parquet_webp", "webdataset_raw"):
        for path in sorted((shared_data / folder).glob("*.parquet")):
            counts = pq.read_table(path, columns=["status"])["status"].to_pylist()
            images = images_of(path)
            assert sum(isinstance(image, bytes) for image in images) == counts.count("success")
            assert reasons(images).count(Reason.NOT_DOWNLOADED) == len(counts) - counts.count("success")
