"""Each caption's score is the cosine of its own and its image's embedding, as open_clip gives them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from boring_assets.tiny import TINY_DIR
from tests.command_line import CommandLine
from tests.search.conftest import HELD_OUT
from tests.search.dataset import jpeg, write_shard


@pytest.fixture
def call(tmp_path: Path) -> CommandLine:
    captions = [each.caption for each in HELD_OUT[:8]]
    images = [jpeg(each, 1) for each in HELD_OUT[:8]]
    write_shard(tmp_path / "in" / "a.parquet", captions, images)
    # Captions that do not belong, and none at all.
    write_shard(tmp_path / "in" / "b.parquet", [*captions[::-1][:6], None, "  "], images)
    call = CommandLine(tmp_path)
    call("embed", tmp_path / "in", tmp_path / "out")
    return call


def test_captions_are_scored_and_scores_follow_the_embeddings(call: CommandLine, tmp_path: Path) -> None:
    import open_clip
    import torch

    del call.env["BORING_MODEL"]  # the output names the model
    said = call("clip-scores", "--output", tmp_path / "out", "--caption-embeddings").stdout
    assert "2 shards scored" in said
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{TINY_DIR}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY_DIR}")
    for key in "ab":
        rows = pl.read_parquet(tmp_path / "out" / "image_embeddings" / f"{key}.parquet")
        scores = pl.read_parquet(tmp_path / "out" / "clip_scores" / f"{key}.parquet")
        assert scores["key"].to_list() == rows["key"].to_list()
        assert scores["row"].to_list() == list(range(8))
        for row, score, mine in zip(
            rows.to_dicts(), scores["clip_score"], scores["caption_embedding"], strict=True
        ):
            if not (row["caption"] or "").strip():
                assert score is None
                assert mine is None
                continue
            with torch.no_grad():
                text = model.eval().encode_text(tokenizer([row["caption"]]), normalize=True)[0].numpy()
            assert score == pytest.approx(float(text @ np.array(row["embedding"])), abs=1e-4)
            np.testing.assert_allclose(np.array(mine), text, atol=1e-4)
    right, wrong = (pl.read_parquet(tmp_path / "out" / "clip_scores" / f"{key}.parquet") for key in "ab")
    assert right["clip_score"].min() > wrong["clip_score"].max()

    # As LAION filtered: only the pairs that score enough.
    embeddings = pl.scan_parquet(tmp_path / "out" / "image_embeddings" / "*.parquet")
    kept = embeddings.join(
        pl.scan_parquet(tmp_path / "out" / "clip_scores" / "*.parquet").filter(pl.col("clip_score") >= 0.5),
        on="key",
    ).collect()
    assert sorted(kept["key"]) == sorted(right["key"])


def test_scored_shards_are_skipped_and_changed_ones_scored_again(call: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out" / "clip_scores"

    def stamps() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in out.glob("*.parquet")}

    call("clip-scores", "--output", tmp_path / "out")
    assert "caption_embedding" not in pl.read_parquet(out / "a.parquet").columns
    before = stamps()
    call("clip-scores", "--output", tmp_path / "out")
    assert stamps() == before
    write_shard(tmp_path / "in" / "a.parquet", ["x"] * 3, [jpeg(each, 2) for each in HELD_OUT[:3]])
    call("embed", tmp_path / "in", tmp_path / "out")
    call("clip-scores", "--output", tmp_path / "out")
    after = stamps()
    assert after["b"] == before["b"]
    assert len(pl.read_parquet(out / "a.parquet")) == 3

    said = call("clip-scores", "--output", tmp_path / "out", "--model", "ViT-B-32-none", code=1).stderr
    assert "There is no model" in said
