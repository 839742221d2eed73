"""Loading a model: what is asked for is what comes, or a message that says what to ask for instead."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from boring_assets.engine.model.load import load_model
from boring_assets.errors import ModelError
from boring_assets.tiny import TINY_DIR, TINY_NAME

SMALL = "ViT-S-32-alt"


def copy_of_tiny(folder: Path, weights: bool = True) -> Path:
    folder.mkdir()
    shutil.copy(TINY_DIR / "open_clip_config.json", folder)
    if weights:
        shutil.copy(TINY_DIR / "open_clip_model.safetensors", folder)
    return folder


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_the_model_that_ships_is_loaded_whole() -> None:
    import torch

    model = load_model(TINY_NAME)
    assert (model.name, model.pretrained) == (TINY_NAME, "")
    assert not model.module.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.module.parameters())
    numbers = model.preprocess
    assert (numbers.height, numbers.width) == (64, 64)
    assert (numbers.mean, numbers.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_a_checkpoint_fills_every_weight(tmp_path: Path) -> None:
    """The random weights of a new model are not drawn: nothing of that may be left after loading."""
    import open_clip
    import torch

    wanted = open_clip.create_model(SMALL, pretrained_text=False)
    torch.save(wanted.state_dict(), tmp_path / "checkpoint.pt")
    loaded = load_model(SMALL, str(tmp_path / "checkpoint.pt")).module
    for kind in ("named_parameters", "named_buffers"):
        theirs, ours = dict(getattr(wanted, kind)()), dict(getattr(loaded, kind)())
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_digest_names_the_weights(tmp_path: Path) -> None:
    """Same weights, same digest, wherever they lie; one changed number, another digest."""
    from safetensors.numpy import load_file, save_file

    digest = load_model(TINY_NAME).digest
    assert len(digest) == 16
    folder = copy_of_tiny(tmp_path / "copy")
    assert load_model(str(folder)).digest == digest
    assert load_model(f"local-dir:{folder}").digest == digest
    weights = load_file(folder / "open_clip_model.safetensors")
    name = next(name for name, value in weights.items() if name.startswith("visual.") and value.ndim == 2)
    weights[name] = weights[name].copy()
    weights[name][0, 0] = np.nextafter(weights[name][0, 0], np.inf, dtype=weights[name].dtype)
    save_file(weights, folder / "open_clip_model.safetensors")
    assert load_model(str(folder)).digest != digest


@pytest.mark.parametrize(
    ("name", "near"),
    [("ViT-B32", "ViT-B-32"), ("vit-l-14", "ViT-L-14"), ("boring_tiny", "boring-tiny"), ("RN-50", "RN50")],
)
def test_an_unknown_name_is_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"no model '{name}'") as caught:
        load_model(name)
    assert near in str(caught.value)
    assert "local directory" in str(caught.value)


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no open_clip_config\.json") as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no JSON", "other weights"])
def test_a_damaged_folder_is_a_model_error(tmp_path: Path, damage: str) -> None:
    folder = copy_of_tiny(tmp_path / "model", weights=damage != "no weights")
    if damage == "cut weights":
        path = folder / "open_clip_model.safetensors"
        path.write_bytes(path.read_bytes()[:100_000])
    elif damage == "no JSON":
        (folder / "open_clip_config.json").write_text("{")
    elif damage == "other weights":
        config = (folder / "open_clip_config.json").read_text()
        (folder / "open_clip_config.json").write_text(config.replace('"embed_dim": 64', '"embed_dim": 65'))
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)


def test_a_tag_that_the_model_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a file nor a pretrained tag of ViT-B-32") as caught:
        load_model("ViT-B-32", "laion2b-s34b")
    assert "laion2b_s34b_b79k" in str(caught.value)
    with pytest.raises(ModelError, match="neither a file nor a pretrained tag"):
        load_model(SMALL, str(tmp_path / "none.safetensors"))


def test_a_model_without_weights_asks_for_them() -> None:
    with pytest.raises(ModelError, match="BORING_PRETRAINED") as caught:
        load_model("ViT-L-14")
    assert "openai" in str(caught.value)
    with pytest.raises(ModelError, match="to a checkpoint file"):
        load_model(SMALL)


def test_checkpoints_of_either_format_are_loaded(tmp_path: Path) -> None:
    """As safetensors, and as torch saves it; and not for a model that they do not belong to."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    weights = open_clip.create_model(SMALL).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "small.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "small.pt")
    models = [load_model(SMALL, str(tmp_path / name)) for name in ("small.safetensors", "small.pt")]
    assert [model.pretrained for model in models] == ["small.safetensors", "small.pt"]
    assert models[0].digest == models[1].digest
    for name, value in models[0].module.state_dict().items():
        assert torch.equal(value, weights[name]), name
    with pytest.raises(ModelError, match="ViT-S-16-alt"):
        load_model("ViT-S-16-alt", str(tmp_path / "small.safetensors"))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    import torch

    mark = tmp_path / "was-run"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Evil(mark)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ModelError, match=SMALL):
            load_model(SMALL, str(tmp_path / name))
        folder = copy_of_tiny(tmp_path / f"model-{name}", weights=False)
        shutil.copy(tmp_path / name, folder / "open_clip_pytorch_model.bin")
        with pytest.raises(ModelError):
            load_model(str(folder))
    assert not mark.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert mark.exists(), "the trap itself works"
