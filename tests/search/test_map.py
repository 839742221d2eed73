"""The map of the embeddings, served by Embedding Atlas, in a real browser."""

import io
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from PIL import Image

from tests.command_line import CommandLine
from tests.search.conftest import Gallery, Server
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.heavy
SAMPLE = 5


@pytest.fixture(scope="module")
def atlas(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    call = CommandLine(gallery.call.folder)  # the gallery's own is shared by all modules
    call.env["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    running = Server(call, "map", gallery.output, "--input", gallery.input, "--sample", SAMPLE)
    yield running
    running.stop()


def points(server: Server) -> pl.DataFrame:
    status, data, _ = server.ask("/data/dataset.parquet")
    assert status == 200
    return pl.read_parquet(io.BytesIO(data))


def test_the_map_shows_a_sample_of_the_whole_dataset_with_pictures(atlas: Server) -> None:
    found = points(atlas)
    assert found.height == SAMPLE
    assert set(found["partition"]) == {"00000", "00001"}
    assert found["x"].is_finite().all()
    assert found["y"].n_unique() == SAMPLE
    assert {"key", "caption", "url", "meta_width"} <= set(found.columns)
    assert "vector" not in found.columns
    for path in found["picture"]:
        status, data, headers = atlas.ask(path)
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert Image.open(io.BytesIO(data)).size == (224, 224)


def test_another_site_cannot_read_the_map(atlas: Server) -> None:
    assert atlas.ask("/data/dataset.parquet", Host="evil.example")[0] == 400
    assert atlas.ask("/", Host="localhost")[0] == 200


def test_the_page_shows_pictures_and_captions(browser: Any, atlas: Server) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(1000 * HANG_SECONDS)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda line: trouble.append(line.text) if "Content Security" in line.text else None)
    page.on("request", lambda sent: None if atlas.url in sent.url else trouble.append(sent.url))
    page.goto(atlas.url)
    page.get_by_text(f"{SAMPLE} / {SAMPLE} points").wait_for()
    page.mouse.click(88, 614)  # the table as cards
    picture = page.locator("img[src^='/api/picture']").first
    picture.wait_for()
    page.wait_for_function("document.querySelector('img[src^=\"/api/picture\"]').naturalWidth == 224")
    caption = points(atlas)["caption"][0]
    assert page.get_by_text(caption, exact=True).first.is_visible()
    page.close()
    assert trouble == []
