"""The contact sheet: the shard's own pictures above their captions, small enough for the event log."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boring_assets.assets.contact_sheet import contact_sheet, failure_sheet
from boring_assets.sample_data import write_sample_data
from tests.assets.project import Project, finished_shard, metadata_of

PICTURE = re.compile(r"!\[\]\(data:image/webp;base64,([A-Za-z0-9+/=]+)\)")


def pictures(text: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in PICTURE.findall(text)]


def test_a_run_shows_its_images_and_its_failures(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "home", monkeypatch, shared_data / "webdataset", tmp_path / "out")
    keys = project.register()
    project.run(keys[0])
    metadata = metadata_of(project.events()[0])
    sheet = metadata["contact_sheet"]
    assert len(pictures(sheet)) == 12
    assert len(sheet) < 60_000, "an event that is larger makes the event log slow"
    captions = set(project.table(keys[0])["caption"].to_pylist())
    shown = re.findall(r"`([^`]+)`", sheet)
    assert len(shown) == 12
    assert all(
        any(caption.startswith(text.removesuffix("...")[:20]) for caption in captions) for text in shown
    )
    failed = project.table(keys[0], "image_failures")
    assert metadata["failures"].count("\n") >= min(12, len(failed)) + 1
    assert failed["reason"][0].as_py() in metadata["failures"]


def test_each_picture_is_above_its_own_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample data draws what the caption says: `a red circle ...` has red in its middle."""
    write_sample_data(tmp_path / "in", 1, 40, "webdataset", image_size=64, broken=5)
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", preview_images=3)
    project.register()
    project.run("00000")
    sheet = metadata_of(project.events()[0])["contact_sheet"]
    assert len(sheet.splitlines()) == 3
    assert len(pictures(sheet)) == 3
    for picture in pictures(sheet):
        assert max(picture.size) <= 96
        assert np.asarray(picture).std() > 5, "a picture, not a blank"


def test_no_contact_sheet_without_preview_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample_data(tmp_path / "in", 1, 8, "webdataset", image_size=64)
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", preview_images=0)
    project.register()
    project.run("00000")
    assert {"contact_sheet", "failures"} & metadata_of(project.events()[0]).keys() == set()


def test_pictures_and_captions_are_in_the_same_order() -> None:
    shard = finished_shard("0", embedded=8)
    colours = [np.full((224, 224, 3), 20 * row, np.uint8) for row in range(8)]
    shard.rows = shard.rows.set_column(1, "caption", [[f"grey {20 * row}" for row in range(10)]])
    shard.previews = [(row, colours[row]) for row in (5, 0, 7, 1, 2, 3, 4, 6)]
    sheet = contact_sheet(shard)
    captions = [int(text) for text in re.findall(r"`grey (\d+)`", sheet)]
    assert captions == [100, 0, 140, 20, 40, 60, 80, 120]
    means = [np.asarray(one).mean() for one in pictures(sheet)]
    assert np.allclose(means, captions, atol=4)


def test_a_caption_is_not_markup() -> None:
    shard = finished_shard("0", caption="x | y `z` ![](https://example.com/a.png)")
    shard.previews = [(0, np.zeros((8, 8, 3), np.uint8))]
    assert contact_sheet(shard).count("|") == 2 + 2 + 2
    assert contact_sheet(shard).splitlines()[-1] == "| `x / y 'z' ![](https://example.com/a.png)` |"


def test_many_failures_are_counted_and_some_shown() -> None:
    text = failure_sheet(finished_shard("0", embedded=1, failed=30))
    assert text.count("decode_error") == 12
    assert text.endswith("18 more in the failures file.")
    assert failure_sheet(finished_shard("0", failed=0)) == ""
