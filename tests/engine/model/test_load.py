"""Loading a model: what is asked for is what comes, or a message that says what to ask for instead."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boring_assets.engine.model.load import load_model
from boring_assets.engine.model.text import TextEncoder
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
    [("ViT-B32", "ViT-B-32"), ("boring_tiny", "boring-tiny"), ("RN-50", "RN50")],
)
def test_an_unknown_model_name_lists_similar_names(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"no model '{name}'") as caught:
        load_model(name)
    assert near in str(caught.value)
    assert "local directory" in str(caught.value)


def test_a_folder_without_a_model_is_refused_with_what_is_missing(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "model", "tag"),
    [
        ("openai/clip-vit-base-patch32", "ViT-B-32", "openai"),
        ("openai/clip-vit-large-patch14-336", "ViT-L-14-336", "openai"),
        ("google/siglip-base-patch16-224", "ViT-B-16-SigLIP", "webli"),
        ("google/siglip-so400m-patch14-384", "ViT-SO400M-14-SigLIP-384", "webli"),
        ("google/siglip2-so400m-patch14-384", "ViT-SO400M-14-SigLIP2-378", "webli"),
        ("google/siglip2-giant-opt-patch16-256", "ViT-gopt-16-SigLIP2-256", "webli"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32", "laion2b_s34b_b79k"),
        ("vit-b-32", "ViT-B-32", "laion2b_s34b_b79k"),
        ("vit-l/14", "ViT-L-14", "openai"),
    ],
)
def test_a_name_on_the_hub_is_refused_with_the_name_in_open_clip(name: str, model: str, tag: str) -> None:
    with pytest.raises(ModelError, match=f"BORING_MODEL={model} BORING_PRETRAINED={tag},") as caught:
        load_model(name)
    assert f"--model {model} --pretrained {tag}." in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "clip", "vision_config": {"patch_size": 32}}, "--model ViT-B-32 --pretrained openai"),
        (
            {
                "model_type": "clip",
                "vision_config": {"hidden_size": 1280, "patch_size": 14},
                "text_config": {"hidden_act": "gelu"},
            },
            "--model ViT-H-14 --pretrained laion2b_s32b_b79k",
        ),
        (
            {"model_type": "siglip", "vision_config": {"image_size": 256}},
            "--model ViT-B-16-SigLIP-256 --pretrained webli",
        ),
        ({"model_type": "bert"}, "This one has the format of transformers."),
    ],
)
def test_a_transformers_directory_is_refused_with_the_name_in_open_clip(
    tmp_path: Path, config: dict, said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has no open_clip_config\.json") as caught:
        load_model(str(tmp_path))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", [TINY_NAME, str(TINY_DIR), f"local-dir:{TINY_DIR}", "hf-hub:some/model"])
def test_a_tag_for_a_model_with_weights_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"BORING_PRETRAINED is 'openai', but the model {name} brings"):
        load_model(name, "openai")


EVIL = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}


def evil_model(folder: Path, mark: Path, *, kwargs: bool, auto_map: str) -> Path:
    """boring-tiny with a tokenizer that is a Python file, as some models of the hub have it."""
    copy_of_tiny(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "evil"
    if kwargs:
        config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    if auto_map:
        (folder / auto_map).parent.mkdir(exist_ok=True)
        (folder / auto_map).write_text(json.dumps(AUTO_MAP))
    return folder


def test_a_model_directory_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    mark = tmp_path / "ran"
    tiny = load_model(TINY_NAME)
    cases = [
        (True, "tokenizer_config.json", "open_clip_config.json has the entry trust_remote_code"),
        (False, "tokenizer_config.json", "tokenizer_config.json has the entry auto_map"),
        (True, "", "has the entry trust_remote_code"),
        (False, "config.json", "config.json has the entry auto_map"),
        (False, "below/config.json", "below/config.json has the entry auto_map"),
    ]
    for number, (kwargs, auto_map, said) in enumerate(cases):
        folder = evil_model(tmp_path / str(number), mark, kwargs=kwargs, auto_map=auto_map)
        with pytest.raises(ModelError, match=said):
            load_model(str(folder))
        with pytest.raises(ModelError, match=said):  # what search, clip-scores and serve do
            TextEncoder(replace(tiny, name=str(folder)), "cpu", "fp32")
        assert not mark.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="tokenizer"):  # there is no vocabulary, but the code was run
        AutoTokenizer.from_pretrained(tmp_path / "0", trust_remote_code=True)
    assert mark.exists(), "the trap itself works"


def test_a_model_of_the_hub_runs_no_code(tmp_path: Path) -> None:
    """The hub's cache on disk, as huggingface_hub lays it out, stands for the hub."""
    repository = tmp_path / "hub" / "models--evil--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    mark = tmp_path / "ran"
    evil_model(repository / "snapshots" / ("0" * 40), mark, kwargs=True, auto_map="tokenizer_config.json")
    code = "from boring_assets.engine.model.load import load_model; load_model('hf-hub:evil/clip')"
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "The model hf-hub:evil/clip is refused: its open_clip_config.json" in done.stderr
    assert not mark.exists()
