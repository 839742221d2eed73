"""Images in tars and folders, alone or beside a parquet: their rows, and what is said of other members."""

import base64
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.samples import Reason
from boring_assets.errors import ShardError
from tests.engine.kinds import encoded, jpeg, picture, write_tar, write_typed_tar
from tests.engine.opening import read

JPEGS = [jpeg(seed) for seed in range(4)]
MASK = encoded(picture(32, 32), "PNG")


def test_an_image_in_the_json_of_a_tar_stays_out_of_the_output(tmp_path: Path) -> None:
    thumbnail = base64.b64encode(MASK).decode()
    values = json.dumps({"thumbnail": thumbnail, "n": 1, "score": float("nan")}).encode()
    write_tar(tmp_path / "0.tar", [("a.jpg", JPEGS[0]), ("a.json", values)])
    opened, _ = read(tmp_path)
    assert opened.rows.schema.field("score").type == pa.float64()
    assert opened.rows.column_names[2:] == ["n", "score"]
    assert "thumbnail" in opened.notes[0]


def test_webdatasets_own_writer(tmp_path: Path) -> None:
    import webdataset

    samples = [
        {"__key__": f"dir/s{row}", "input.jpg": JPEGS[row], "target.png": MASK, "txt": f"no {row}",
         "json": {"id": row, "text": "other"}, "cls": row}
        for row in range(4)
    ]  # fmt: skip
    for name in ("plain/0.tar", "gz/0.tar.gz"):
        (tmp_path / name).parent.mkdir()
        with webdataset.TarWriter(str(tmp_path / name)) as out:
            for sample in samples:
                out.write(sample)
    for name in ("plain", "gz"):
        opened, images = read(tmp_path / name, image="input.jpg", key="id")
        assert images == JPEGS
        assert opened.column("key") == ["0", "1", "2", "3"]
        assert opened.column("caption") == [f"no {row}" for row in range(4)]
        opened, images = read(tmp_path / name)
        assert len(images) == 8
        assert set(opened.column("key")) == {
            f"dir/s{row}.{side}" for row in range(4) for side in ("input", "target")
        }
    with pytest.raises(ShardError, match=r"no extension 'left.jpg'.*input.jpg, json, target.png"):
        read(tmp_path / "plain", image="left.jpg")


def test_a_zstd_tar_is_read_as_a_stream(tmp_path: Path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in (
            ("0.jpg", JPEGS[0]),
            ("0.json", b'{"caption": ["first", "second"]}'),
            ("1.jpg", JPEGS[1]),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "0.tar.zst"
    path.write_bytes(pa.compress(plain.getvalue(), "zstd", asbytes=True))
    opened, images = read(tmp_path)
    assert images == JPEGS[:2]
    assert opened.column("caption") == ["first", None]
    assert opened.rows["caption"].to_pylist() == ['["first", "second"]', None]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ShardError):
        read(tmp_path)


def test_an_extension_of_files_beside_a_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "0.parquet")
    write_tar(
        tmp_path / "0.tar",
        [(f"{key}.{side}.jpg", side.encode()) for key in "ab" for side in ("left", "right")],
    )
    assert read(tmp_path, image="right.jpg")[1] == [b"right", b"right"]
    with pytest.raises(ShardError, match=r"It has: left.jpg, right.jpg"):
        read(tmp_path, image="top.jpg")


def _tar_of_links(path: Path, mode: str) -> None:
    members = (
        ("a.jpg", tarfile.REGTYPE, JPEGS[0]),
        ("soft.jpg", tarfile.SYMTYPE, b""),
        ("soft.txt", tarfile.REGTYPE, b"its text"),
        ("hard.jpg", tarfile.LNKTYPE, b""),
        ("folder.jpg", tarfile.DIRTYPE, b""),
        ("b.jpg", tarfile.REGTYPE, JPEGS[1]),
    )
    write_typed_tar(path, members, mode)


@pytest.mark.parametrize(("name", "mode"), [("0.tar", "w"), ("0.tar.gz", "w:gz")])
def test_links_in_a_tar_are_rows_that_failed(tmp_path: Path, name: str, mode: str) -> None:
    _tar_of_links(tmp_path / name, mode)
    opened, images = read(tmp_path)
    assert opened.column("key") == ["a", "soft", "hard", "b"]
    assert opened.column("caption") == [None, "its text", None, None]
    assert [images[0], images[3]] == JPEGS[:2]
    for image in images[1:3]:
        assert image.reason is Reason.MISSING_IMAGE
        assert "is a link" in image.detail


def test_links_in_a_tar_beside_a_parquet_say_so(tmp_path: Path) -> None:
    _tar_of_links(tmp_path / "0.tar", "w")
    pq.write_table(pa.table({"key": ["a", "soft", "b", "none"]}), tmp_path / "0.parquet")
    _, images = read(tmp_path)
    assert [images[0], images[2]] == JPEGS[:2]
    assert "is a link" in images[1].detail


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_of_gnu_tar_are_rows_that_failed(tmp_path: Path, form: str) -> None:
    with (tmp_path / "holes.jpg").open("wb") as file:
        file.write(JPEGS[0])
        file.truncate(3_000_000)
    (tmp_path / "z.jpg").write_bytes(JPEGS[1])
    command = ["tar", "--sparse", f"--format={form}", "-cf", "0.tar", "holes.jpg", "z.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    opened, images = read(tmp_path)
    assert opened.column("key") == ["holes", "z"]
    assert "sparse" in images[0].detail
    assert images[1] == JPEGS[1]


def test_names_that_are_not_utf8_stay_apart(tmp_path: Path) -> None:
    names = [("é.jpg", JPEGS[0]), ("é.txt", b"of e"), ("ü.jpg", JPEGS[1]), ("ü.txt", b"of u")]
    write_tar(tmp_path / "0.tar", names, format=tarfile.GNU_FORMAT, encoding="latin-1")
    opened, images = read(tmp_path)
    assert opened.column("key") == ["\\xe9", "\\xfc"]
    assert opened.column("caption") == ["of e", "of u"]
    assert images == JPEGS[:2]


def test_members_without_an_ending_are_no_samples_and_images_under_other_names_are_said(
    tmp_path: Path,
) -> None:
    members = [
        ("a.jpg", JPEGS[0]),
        ("README", b"text"),
        ("b.img", JPEGS[1]),
        ("c.npy", b"x"),
        ("d", JPEGS[2]),
    ]
    write_tar(tmp_path / "0.tar", members)
    opened, _ = read(tmp_path)
    assert opened.column("key") == ["a"]
    assert len(opened.notes) == 2
    assert "'b.img'" in opened.notes[0]
    assert "BORING_IMAGE_COLUMN=img" in opened.notes[0]
    assert "'d'" in opened.notes[1]


def test_a_text_that_windows_wrote_has_no_mark(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", JPEGS[0]), ("a.txt", "\ufeffa dog".encode())])
    assert read(tmp_path)[0].column("caption") == ["a dog"]


@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_keys_that_are_names_of_files_or_paths(tmp_path: Path, layout: str) -> None:
    keys = ["one.jpg", "x/two", "y/two", "three.JPG", "gone"]
    files = ["one.jpg", "x/two.png", "y/two.png", "deep/three.JPG", "of_no_row.jpg"]
    pq.write_table(pa.table({"key": keys}), tmp_path / "0.parquet")
    members = list(zip(files, [*JPEGS, MASK], strict=True))
    if layout == "tar":
        write_tar(tmp_path / "0.tar", members)
    for name, data in members if layout == "folder" else []:
        (tmp_path / "0" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "0" / name).write_bytes(data)
    opened, images = read(tmp_path)
    assert images[:4] == JPEGS
    assert images[4].reason is Reason.MISSING_IMAGE
    assert opened.notes == [
        f"Images of the {layout} that have no row in the parquet, and are not embedded: 1."
    ]


def test_a_folder_of_the_files_that_urls_lead_to(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPEGS[0])
    for columns in ({}, {"key": ["7"]}):
        pq.write_table(pa.table({"url": ["images/a.jpg"], **columns}), tmp_path / "images.parquet")
        assert read(tmp_path)[1] == JPEGS[:1]
    columns = {"url": ["https://example.com/images/a.jpg"], "key": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "images.parquet")
    assert read(tmp_path)[1] == JPEGS[:1]


def test_the_caption_of_a_tar_is_only_what_the_setting_names(tmp_path: Path) -> None:
    members = [("a.jpg", JPEGS[0]), ("a.prompt", b"one"), ("b.jpg", JPEGS[1]), ("b.txt", b"another text")]
    write_tar(tmp_path / "0.tar", members)
    opened, _ = read(tmp_path, caption="prompt")
    assert opened.column("caption") == ["one", None]
    assert opened.rows.column_names == ["key", "prompt"]
    with pytest.raises(ShardError, match=r"has no column 'nothing'.* It has: key\."):
        read(tmp_path, caption="nothing")


def test_second_images_of_a_row_are_said(tmp_path: Path) -> None:
    members = [("a.jpg", JPEGS[0]), ("a.jpg", JPEGS[1]), ("b.jpg", JPEGS[2]), ("b.png", MASK)]
    write_tar(tmp_path / "0.tar", members)
    assert len(read(tmp_path)[1]) == 4
    opened, images = read(tmp_path, image="jpg")
    assert images == [JPEGS[0], JPEGS[2]]
    assert opened.notes == ["Images that are not the first of their sample, and not embedded: 1."]
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "0.parquet")
    opened, images = read(tmp_path)
    assert images == [JPEGS[0], JPEGS[2]]
    assert opened.notes == [
        "Images of the tar that are not the first one of their row, and are not embedded: 2."
    ]
