"""A folder of pictures, listed and embedded."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from boring_assets.cli import main
from boring_assets.commands.picture_lists import write_lists
from boring_assets.storage.root import open_root
from tests.assets.project import Project
from tests.seaweed import Seaweed


def picture(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), (shade, 60, 200)).save(path)


def call(folder: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["list-pictures", str(folder), *options])
    return done.output.strip()


def test_a_folder_of_pictures_is_listed_and_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate(["a.jpg", "dogs/b.PNG", "dogs/big & small #1?.webp", "dogs/c:d%20.jpg"]):
        picture(folder / name, 40 * number)
    (folder / "a.txt").write_text(" a picture\n")
    (folder / "broken.jpg").write_bytes(b"no picture")
    picture(folder / ".hidden" / "a.jpg")
    picture(folder / "_tmp" / "a.jpg")
    (folder / "notes.md").write_text("no picture")
    assert call(folder, "--samples-per-shard", "3") == "5 new pictures in 2 new lists."

    project = Project(tmp_path / "home", monkeypatch, folder, tmp_path / "out", quiet_seconds=3600)
    assert project.register() == ["pictures-00000", "pictures-00001"]
    assert not project.run("pictures-00000", "pictures-00001").error
    rows = [row for key in ("pictures-00000", "pictures-00001") for row in project.table(key).to_pylist()]
    assert {row["key"] for row in rows} == {
        "a.jpg", "dogs/b.PNG", "dogs/big & small #1?.webp", "dogs/c:d%20.jpg",
    }  # fmt: skip
    assert {row["key"]: row["caption"] for row in rows}["a.jpg"] == "a picture"
    failed = project.table("pictures-00000", "image_failures").to_pylist()
    assert [(row["key"], row["reason"]) for row in failed] == [("broken.jpg", "decode_error")]


def test_later_calls_list_what_is_new_and_change_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "b.jpg")
    assert call(tmp_path) == "1 new picture in 1 new list."
    before = (tmp_path / "pictures-00000.parquet").stat().st_mtime_ns
    assert call(tmp_path) == "0 new pictures in 0 new lists."
    picture(tmp_path / "a.jpg")
    assert call(tmp_path) == "1 new picture in 1 new list."
    assert (tmp_path / "pictures-00000.parquet").stat().st_mtime_ns == before
    assert pq.read_table(tmp_path / "pictures-00001.parquet")["key"].to_pylist() == ["a.jpg"]


def test_a_bucket_is_listed_like_a_folder(tmp_path: Path, s3_env: Seaweed) -> None:
    for name in ("x/1.jpg", "x/2.jpg", "3.jpg"):
        picture(tmp_path / name)
    (tmp_path / "x" / "2.txt").write_text("two")
    root = open_root(s3_env.new_prefix())
    root.fs.put(f"{tmp_path}/", root.path + "/", recursive=True)
    assert write_lists(root.uri, 10) == [3]
    shutil.rmtree(tmp_path / "x")
    root.fs.get(f"{root.path}/pictures-00000.parquet", str(tmp_path / "list.parquet"))
    rows = pq.read_table(tmp_path / "list.parquet").to_pylist()
    assert [(row["key"], row["caption"]) for row in rows] == [
        ("3.jpg", None), ("x/1.jpg", None), ("x/2.jpg", "two"),
    ]  # fmt: skip


def test_a_folder_without_pictures_is_reported(tmp_path: Path) -> None:
    assert "There are no pictures" in call(tmp_path)
