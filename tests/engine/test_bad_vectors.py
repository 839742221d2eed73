"""NaN, infinite and zero vectors never reach the output: models that are broken, or that overflow."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from boring_assets.engine.embedder import Embedder
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.tiny import TINY_DIR
from tests.command_line import CommandLine
from tests.search.conftest import HELD_OUT
from tests.search.dataset import jpeg

WEIGHTS = "open_clip_model.safetensors"
LARGEST = float(np.finfo(np.float32).max) ** 0.5


def changed_model(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """boring-tiny, with another last layer of its image tower."""
    shutil.copytree(TINY_DIR, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = load_file(folder / WEIGHTS)
    name = "visual.proj" if "visual.proj" in weights else "visual.head.proj.weight"
    weights[name] = change(weights[name].astype(np.float32))  # they are stored as float16
    save_file(weights, folder / WEIGHTS)
    return folder


def test_a_broken_checkpoint_fails_the_shard_and_is_named(tmp_path: Path) -> None:
    model = changed_model(tmp_path / "model", lambda weights: weights * np.nan)
    cli = CommandLine(tmp_path)
    cli.sample_data("in", shards=2, samples=6)
    said = cli("embed", tmp_path / "in", tmp_path / "out", BORING_MODEL=str(model), code=3)
    assert f"The model {model}" in said.stdout + said.stderr
    assert "in fp32 gave no usable vector for any of the 6 images" in said.stdout + said.stderr
    assert not list((tmp_path / "out").rglob("image_embeddings/*.parquet"))


def test_images_that_a_model_cannot_embed_are_failures_and_the_others_stay(tmp_path: Path) -> None:
    """The model's numbers are as large as fp32 has them: the squares of the larger half are infinite."""
    import torch

    plain = load_model("boring-tiny").module
    encoder = Encoder(load_model("boring-tiny"), "cpu", "fp32")
    cli = CommandLine(tmp_path)
    cli.sample_data("in", shards=1, samples=20)
    images = pq.read_table(tmp_path / "in" / "00000.parquet")["jpg"].to_pylist()
    pixels = torch.stack([decoded(image, encoder) for image in images])
    mean, std = (torch.tensor(getattr(encoder.model.preprocess, name)) for name in ("mean", "std"))
    with torch.inference_mode():
        features = plain.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    lengths = features.norm(dim=1).numpy()
    middle = float(np.median(lengths))
    model = changed_model(tmp_path / "model", lambda weights: weights * (LARGEST / middle))
    cli("embed", tmp_path / "in", tmp_path / "out", BORING_MODEL=str(model))
    failed = pq.read_table(tmp_path / "out" / "image_failures" / "00000.parquet").to_pylist()
    table = pq.read_table(tmp_path / "out" / "image_embeddings" / "00000.parquet")
    assert {row["row"] for row in failed} == set(np.flatnonzero(lengths > middle).tolist())
    assert {row["reason"] for row in failed} == {"bad_vector"}
    assert str(model) in failed[0]["detail"]
    assert "in fp32" in failed[0]["detail"]
    assert sorted([row["row"] for row in failed] + table["row"].to_pylist()) == list(range(20))
    assert cli("verify", tmp_path / "out").stdout.startswith("1 partition checked: all sound.")
    answers = Embedder(str(model), device="cpu", precision="fp32").embed(images)
    assert {row for row, answer in enumerate(answers) if answer.reason == "bad_vector"} == {
        row["row"] for row in failed
    }


def decoded(image: bytes, encoder: Encoder) -> object:
    from boring_assets.engine.decoding.decode import Limits, decode

    return decode(image, encoder.model.preprocess, Limits())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_overflows_in_half_precision_is_computed_in_fp32(tmp_path: Path, precision: str) -> None:
    """The last layer's numbers are past fp16's largest, 65,504; bf16 has the range of fp32."""
    model = changed_model(tmp_path / "model", lambda weights: weights * 1e6)
    images = [jpeg(each, 1) for each in HELD_OUT[:20]]
    right = Embedder("boring-tiny", device="cpu", precision="fp32").embed(images)
    answers = Embedder(str(model), device="cpu", precision=precision, batch_size=8).embed(images)
    assert [answer.reason for answer in answers] == [None] * len(images)
    least = 0.999999 if precision == "fp16" else 0.99
    for answer, expected in zip(answers, right, strict=True):
        assert answer.embedding is not None
        assert expected.embedding is not None
        assert float(answer.embedding @ expected.embedding) > least
