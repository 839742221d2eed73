"""Search finds the right pictures, on the command line and in files."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boring_assets.engine.model.load import load_model
from boring_assets.engine.model.text import TextEncoder
from boring_assets.errors import SettingsError
from boring_assets.search.query import Searcher
from boring_assets.search.request import condition
from boring_assets.settings import Settings
from resources.embeddings_io import EmbeddingsIOManager
from tests.search.conftest import HELD_OUT, Gallery
from tests.search.dataset import jpeg, write_shard


def test_held_out_captions_find_their_own_pictures(gallery: Gallery) -> None:
    settings = Settings(output_dir=str(gallery.output), device="cpu", precision="fp32")
    searcher = Searcher(
        settings, EmbeddingsIOManager.from_settings(settings).root()
    )  # the model is named by the index
    assert searcher.count() == len(HELD_OUT) >= 200
    vectors = TextEncoder(load_model("boring-tiny"), "cpu", "fp32").encode(
        [each.caption for each in HELD_OUT]
    )
    np.testing.assert_allclose(searcher.of_text(HELD_OUT[-1].caption), vectors[-1], atol=1e-5)
    first = [searcher.nearest(vector, limit=1)[0].caption for vector in vectors]
    found = sum(caption == each.caption for caption, each in zip(first, HELD_OUT, strict=True))
    assert found / len(HELD_OUT) >= 0.9


def test_a_sample_with_vectors_comes_from_all_over_the_dataset(gallery: Gallery) -> None:
    searcher = Searcher(
        Settings(output_dir=str(gallery.output)),
        EmbeddingsIOManager.from_settings(Settings(output_dir=str(gallery.output))).root(),
    )
    found = searcher.sample_vectors(9)
    assert len({*zip(found["partition"].to_pylist(), found["row"].to_pylist(), strict=True)}) == 9
    assert set(found["partition"].to_pylist()) == {"00000", "00001"}
    assert found["vector"].type.list_size == searcher.dim
    some = searcher.sample_vectors(9, "meta_width BETWEEN 5 AND 9")
    assert sorted(some["meta_width"].to_pylist()) == [5, 6, 7, 8, 9]
    with pytest.raises(SettingsError, match="The columns are partition"):
        searcher.sample_vectors(9, "no_such_column = 1")


@pytest.mark.parametrize(
    "command", [("search", "a red circle", "--html", "page.html"), ("serve",), ("near-duplicates",)]
)
def test_pictures_of_another_input_are_refused(
    gallery: Gallery, tmp_path: Path, command: tuple[str, ...]
) -> None:
    write_shard(tmp_path / "00000.parquet", ["another"], [jpeg(HELD_OUT[0], 1)])
    error = gallery.call(*command, "--output", gallery.output, "--input", tmp_path, code=1).stderr
    assert "was embedded from" in error
    assert "set-input" in error
    gallery.call("search", "a red circle", "--output", gallery.output, "--input", tmp_path)  # shows none


def test_search_by_text_by_picture_and_by_key(gallery: Gallery, tmp_path: Path) -> None:
    out = ("--output", gallery.output)
    wanted = HELD_OUT[3]
    shown = gallery.call("search", wanted.caption, *out, "--limit", 2).stdout.splitlines()
    assert len(shown) == 2
    assert re.fullmatch(rf"0\.\d{{3}}  000000003  {wanted.caption}  https://example.com/000000003", shown[0])

    # Another drawing of the same, as a WebP whose name says otherwise.
    picture = tmp_path / "picture.jpg"
    Image.open(io.BytesIO(jpeg(wanted, 77, 200))).save(picture, "WEBP")
    (best, *_) = json.loads(gallery.call("search", "--image", picture, *out, "--json").stdout)
    assert best["caption"] == wanted.caption
    assert best.keys() >= {"key", "caption", "score", "url", "partition", "row", "meta_width"}

    hits = json.loads(gallery.call("search", "--key", "000000003", *out, "--json", "--limit", 5).stdout)
    assert len(hits) == 5
    assert "000000003" not in [hit["key"] for hit in hits]
    assert wanted.colour in hits[0]["caption"]

    picture.write_text("<html>")
    said = gallery.call("search", "--image", picture, *out, code=1).stderr
    assert "cannot be decoded" in said
    assert "no picture with the key 'nope'" in gallery.call("search", "--key", "nope", *out, code=1).stderr
    assert "Give one of" in gallery.call("search", *out, code=2).stderr


def test_filters_pages_and_least_scores(gallery: Gallery) -> None:
    def ask(*options: object) -> list[dict]:
        return json.loads(
            gallery.call("search", "red circle", "--output", gallery.output, "--json", *options).stdout
        )

    whole = ask("--limit", 100)
    assert [hit["key"] for hit in ask("--limit", 10, "--offset", 10)] == [hit["key"] for hit in whole[10:20]]
    assert {hit["partition"] for hit in whole} == {"00000", "00001"}
    some = ask("--where", "meta_width BETWEEN 5 AND 9 AND caption LIKE '%'")
    assert {hit["meta_width"] for hit in some} == {5, 6, 7, 8, 9}
    least = whole[20]["score"]
    assert len(ask("--limit", 100, "--min-score", least)) == 21
    assert ask("--min-score", 0.999) == []
    wrong = gallery.call("search", "x", "--output", gallery.output, "--where", "nope = 1", code=1)
    assert "The filter 'nope = 1' is wrong" in wrong.stderr
    assert "meta_width" in wrong.stderr


def test_filter_values_cannot_inject_sql(gallery: Gallery) -> None:
    settings = Settings(output_dir=str(gallery.output), device="cpu", precision="fp32")
    searcher = Searcher(settings, EmbeddingsIOManager.from_settings(settings).root())
    vector = searcher.of_text("red circle")
    for value in ("' OR 1=1 --", "''; DROP TABLE images", "\\' OR true --", "%"):
        for operator in ("=", "contains"):
            where = condition(searcher.columns, [("caption", operator, value)])
            assert searcher.nearest(vector, where=where) == []
    where = condition(searcher.columns, [("caption", "contains", "RED"), ("meta_width", ">=", "3")])
    assert all("red" in (hit.caption or "") for hit in searcher.nearest(vector, where=where))
    for name, operator, value in (
        ("nope", "=", "1"),
        ("caption", "LIKE", "x"),
        ("meta_width", "=", "1 OR 1"),
    ):
        with pytest.raises(SettingsError):
            condition(searcher.columns, [(name, operator, value)])


def test_the_html_page_is_self_contained(gallery: Gallery, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    where = ("--output", gallery.output, "--input", gallery.input)
    gallery.call("search", "two <b>stars</b>", *where, "--html", page, "--limit", 7)
    text = page.read_text()
    assert "<b>stars" not in text
    assert "two &lt;b&gt;stars" in text
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(images) == 7
    for data in images:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (224, 224)
    assert not re.search(r'src="(?!data:)|<script|<link', text)


def test_a_first_search_indexes_what_is_there_and_later_ones_what_is_new(
    gallery: Gallery, tmp_path: Path
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_shard(
        source / "a.parquet",
        [each.caption for each in HELD_OUT[:3]],
        [jpeg(each, 1) for each in HELD_OUT[:3]],
    )
    nothing = gallery.call("search", "x", "--output", output, code=1)
    assert "Run `boring-assets embed` first" in nothing.stderr
    home = {"DAGSTER_HOME": str(tmp_path / "home")}
    gallery.call("embed", source, output, **home)
    assert len(json.loads(gallery.call("search", "red", "--output", output, "--json").stdout)) == 3
    shutil.copyfile(source / "a.parquet", source / "b.parquet")
    (source / "b_stats.json").write_text("{}")
    gallery.call("embed", source, output, **home)
    assert len(gallery.call("search", "red", "--output", output, "--no-update").stdout.splitlines()) == 3
    done = gallery.call("search", "red", "--output", output)
    assert "Updating the index: 1 of 1 shards" in done.stderr
    assert len(done.stdout.splitlines()) == 6
    said = gallery.call("search", "--key", "a0000", "--output", output, code=1).stderr
    assert "is in the partitions a and b" in said
    gallery.call("search", "--key", "a0000", "--partition", "b", "--output", output)


def test_another_model_than_the_embeddings_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    import open_clip
    import torch

    from boring_assets.tiny import TINY_DIR

    torch.manual_seed(0)
    folder = tmp_path / "other"
    shutil.copytree(TINY_DIR, folder)
    model = open_clip.create_model(f"local-dir:{TINY_DIR}", load_weights=False)
    from safetensors.torch import save_file

    save_file(
        {name: each.contiguous() for name, each in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    said = gallery.call("search", "red", "--output", gallery.output, "--model", folder, code=1).stderr
    assert "The images were embedded with boring-tiny" in said
