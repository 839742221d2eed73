"""int8 on the CPU; `test_faithfulness` compares its embeddings with open_clip's."""

import json
import sys
from pathlib import Path

import pytest

from boring_assets.engine.model.devices import pick_precision
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.errors import ModelError
from tests.command_line import CommandLine


def test_an_int8_output_is_complete_searchable_and_not_mixed_with_another(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path)
    cli.sample_data("in", shards=2, samples=30)
    cli("embed", tmp_path / "in", tmp_path / "out", "--precision", "int8")
    assert json.loads((tmp_path / "out" / "metadata.json").read_bytes())["precision"] == "int8"
    assert cli("verify", tmp_path / "out").stdout.startswith("2 partitions checked: all sound.")
    said = cli("embed", tmp_path / "in", tmp_path / "out", "--precision", "fp32", code=1).stderr
    assert "embedded with other settings than model boring-tiny, precision fp32" in said
    answer = cli("search", "a red circle", tmp_path / "out", "--json", BORING_PRECISION="int8").stdout
    (best, *_) = json.loads(answer)
    assert "red" in best["caption"]


def test_what_int8_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class SingularValues(torch.nn.Module):
        """A layer that ONNX has no operator for."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(images.flatten(2))

    with pytest.raises(ModelError, match="runs on the CPU only, and the device is cuda:0"):
        pick_precision("int8", torch.device("cuda:0"))
    model = load_model("boring-tiny")
    model.module.visual = SingularValues()  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"boring-tiny cannot be converted to int8 .*Set BORING_PRECISION"):
        Encoder(model, "cpu", "int8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs onnxruntime, .*boring_assets\[int8\]"):
        Encoder(load_model("boring-tiny"), "cpu", "int8")
