"""Planted duplicates are found, all and only, and told apart: equal bytes or pixels, or only alike."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from boring_assets.search import index
from boring_assets.search.duplicates import find_duplicates
from boring_assets.search.index import has_vector_index, update_index
from boring_assets.search.lance import open_table
from boring_assets.tiny.pictures import draw
from resources.embeddings_io import EmbeddingsIOManager
from tests.command_line import CommandLine
from tests.search.conftest import HELD_OUT
from tests.search.dataset import commit_vectors, encoded, write_shard


def test_exactly_the_known_duplicates_are_found(tmp_path: Path) -> None:
    distinct = [encoded(draw(each, 256, 5), "PNG") for each in HELD_OUT[::9]]
    image = draw(HELD_OUT[1], 256, 8)
    other = draw(HELD_OUT[5], 256, 9)
    same_pixels = [
        encoded(image, "PNG"),
        encoded(image, "PNG", compress_level=1),
        encoded(image, "WEBP", lossless=True),
    ]
    alike = [encoded(other, quality=95), encoded(other, quality=60)]
    images = [*distinct, *same_pixels, *alike]
    write_shard(tmp_path / "in" / "a.parquet", [None] * len(images), images)
    again = [distinct[0], alike[0]]
    write_shard(tmp_path / "in" / "b.parquet", [None] * len(again), again)
    call = CommandLine(tmp_path)
    call("embed", tmp_path / "in", tmp_path / "out")
    said = call(
        "near-duplicates", "--output", tmp_path / "out", "--input", tmp_path / "in", "--threshold", 0.985
    )
    found = pl.read_parquet(tmp_path / "out" / "near_duplicates.parquet")
    groups = {
        frozenset(zip(group["key"], group["kind"], strict=True)) for _, group in found.group_by("group")
    }
    at = len(distinct)
    a = [f"a{row:04}" for row in range(len(images))]
    assert groups == {
        frozenset({(a[0], "exact"), ("b0000", "exact")}),
        frozenset((key, "exact") for key in a[at : at + 3]),
        frozenset({(a[at + 3], "exact"), (a[at + 4], "near"), ("b0001", "exact")}),
    }
    assert "3 groups of 8 images, 7 exact." in said.stdout
    assert found.columns == ["group", "partition", "row", "key", "url", "caption", "score", "kind"]
    assert (found["score"] >= 0.985).all()


def planted(rng: np.random.Generator, count: int) -> tuple[np.ndarray, set[frozenset[int]]]:
    """Random vectors, some of them near copies of others, and one that is there thirty times."""
    vectors = rng.normal(size=(count, 16)).astype(np.float32)
    groups = []
    for first in range(0, 60, 3):
        copies = [first, first + 1] if first % 2 else [first, first + 1, first + 2]
        for copy in copies[1:]:
            vectors[copy] = vectors[first] + 0.01 * rng.normal(size=16)
        groups.append(frozenset(copies))
    vectors[-30:] = vectors[-30] + 0.001 * rng.normal(size=(30, 16))
    groups.append(frozenset(range(count - 30, count)))
    order = rng.permutation(count)
    place = np.argsort(order)
    vectors = vectors[order] / np.linalg.norm(vectors[order], axis=1, keepdims=True)
    return vectors, {frozenset(place[list(group)].tolist()) for group in groups}


@pytest.mark.parametrize("indexed", [False, True])
def test_the_vector_index_finds_the_same_groups_as_comparing_all_pairs(
    indexed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if indexed:
        monkeypatch.setattr(index, "INDEXED_FROM", 1000)
    output = EmbeddingsIOManager(output_dir=str(tmp_path))
    vectors, groups = planted(np.random.default_rng(0), 3000)
    commit_vectors(output, "a", vectors[:2000])
    commit_vectors(output, "b", vectors[2000:], sha256=["same"] * 2 + ["x"] * 998)
    update_index(output.root())
    table = open_table(output.root())
    assert has_vector_index(table) == indexed
    found: Any = pl.from_arrow(find_duplicates(table, 0.995, None))
    places = found.with_columns(place=pl.col("row") + 2000 * (pl.col("partition") == "b"))
    assert {frozenset(group["place"]) for _, group in places.group_by("group")} == groups
    assert (found["score"] > 0.995).all()
