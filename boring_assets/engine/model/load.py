"""Loads an open_clip model: a name and a tag, a checkpoint, a local directory, or the Hugging Face hub."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boring_assets.engine.decoding.decode import Preprocess
from boring_assets.engine.model.imports import import_open_clip
from boring_assets.engine.model.trust import check_model
from boring_assets.errors import ModelError
from boring_assets.secrets import without_secrets
from boring_assets.tiny import TINY_DIR, TINY_NAME

if TYPE_CHECKING:
    import open_clip
    import torch

_DEFAULT_TAGS = {"ViT-B-32": "laion2b_s34b_b79k"}
_SIZES = {"base": "B", "large": "L", "so400m": "SO400M", "giant-opt": "gopt"}
_CLIP_WIDTHS = {768: "B", 1024: "L", 1280: "H", 1664: "bigG"}
_SIGLIP_WIDTHS = {768: "B", 1024: "L", 1152: "SO400M", 1536: "gopt"}
_CLIP = re.compile(r"(?:openai/)?clip-vit-(base|large)-patch(\d+)(-336)?")
_SIGLIP = re.compile(r"(?:google/)?siglip(2?)-(base|large|so400m|giant-opt)-patch(\d+)-(\d+)")


@dataclass(frozen=True)
class ClipModel:
    """A loaded model and what identifies it.

    Attributes:
        name: The model as it was asked for, or the URI that its directory was fetched from.
        pretrained: The tag, or the checkpoint's file name or URI; empty for directories and hub models.
        digest: First 16 hex digits of the SHA-256 over the image tower's weights.
        module: The whole open_clip model, fp32, on the CPU, in evaluation mode.
        preprocess: The model's own preprocess numbers.
        loaded_from: What `load_model` was given for the name and the tag; a tag's default filled in.
    """

    name: str
    pretrained: str
    digest: str
    module: "open_clip.CLIP | open_clip.CustomTextCLIP"
    preprocess: Preprocess
    loaded_from: tuple[str, str] = ("", "")


def load_model(name: str, pretrained: str = "", uri: str = "") -> ClipModel:
    """Loads a model with its weights; checkpoints are loaded weights-only.

    Args:
        name: An open_clip model name, `hf-hub:org/name`, a local directory with `open_clip_config.json`
            (with or without `local-dir:` before it), or `boring-tiny`.
        pretrained: For a model name: one of its pretrained tags, or the path of a checkpoint file. Empty
            takes the default tag of the model, where it has only one or a well-known one. Empty for the
            others, which bring their weights.
        uri: Where the directory or the checkpoint is a copy of; the model is then named by it.

    Raises:
        ModelError: The name or tag is unknown, the checkpoint does not fit, the weights cannot be fetched, or
            the model asks for Python code of its own to be run.
    """
    target, tag, options = resolve(name, pretrained)
    open_clip = import_open_clip()

    try:
        if ":" in target:
            check_model(target)
        with _without_random_weights():
            module = open_clip.create_model(
                target, pretrained=tag or None, require_pretrained=True, **options
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"The model {name!r}{f' with pretrained {tag!r}' if tag else ''} cannot be loaded "
            f"({type(error).__name__}: {without_secrets(str(error))[:500]}). Check the name, that the "
            "checkpoint belongs to that model, and that the machine can reach the weights; a local directory "
            "or a checkpoint file needs no network."
        ) from error
    module = module.eval().requires_grad_(False)
    shown = Path(tag).name if tag and Path(tag).is_file() else tag
    if uri:
        shown, called = (uri, name) if tag else ("", uri)
    else:
        called = name
    preprocess = Preprocess.of(module.visual.preprocess_cfg)
    return ClipModel(called, shown, _digest(module.visual), module, preprocess, (name, tag))


def resolve(name: str, pretrained: str) -> tuple[str, str, dict[str, Any]]:
    """What open_clip calls the model, its tag, and options for it.

    Raises:
        ModelError: There is no such model, or no such tag of it.
    """
    folder = Path(TINY_DIR if name == TINY_NAME else name.removeprefix("local-dir:"))
    is_hub = name.startswith("hf-hub:")
    if not (is_hub or folder.is_dir() or name.startswith("local-dir:")):
        return _resolve_name(name, pretrained)
    if pretrained:
        raise ModelError(
            f"BORING_PRETRAINED is {pretrained!r}, but the model {name} brings its own weights. Leave "
            "BORING_PRETRAINED empty, or set BORING_MODEL to the open_clip name of the checkpoint's model."
        )
    if not (is_hub or (folder / "open_clip_config.json").is_file()):
        raise ModelError(
            f"The model directory {folder} has no open_clip_config.json. Expected an open_clip model "
            "directory: that file and the weights (open_clip_model.safetensors) beside it."
            f"{_transformers(folder)}"
        )
    return name if is_hub else f"local-dir:{folder}", "", {}


def _transformers(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        return ""
    known = _name_of_transformers_directory(folder)
    if not known:
        return " This one has the format of transformers."
    return f" This one has the format of transformers. open_clip has that model as well: {_settings(*known)}."


def _settings(model: str, tag: str) -> str:
    """A model's settings, ready to paste."""
    return f"BORING_MODEL={model} BORING_PRETRAINED={tag}, or --model {model} --pretrained {tag}"


def _resolve_name(name: str, pretrained: str) -> tuple[str, str, dict[str, Any]]:
    open_clip = import_open_clip()

    known = open_clip.list_models()
    clean = name.replace("/", "-")
    if clean not in known:
        if other := _open_clip_name(name):
            raise ModelError(f"open_clip calls the model {name!r} otherwise: set {_settings(*other)}.")
        near = difflib.get_close_matches(clean, [*known, TINY_NAME], n=5, cutoff=0.4)
        raise ModelError(
            f"There is no model {name!r}, nor a directory of that name.{_listed(' Near matches: ', near)} "
            "Expected an open_clip model name, hf-hub:org/name, a local directory, or boring-tiny."
        )
    tags = open_clip.list_pretrained_tags_by_model(clean)
    tag = pretrained or _DEFAULT_TAGS.get(clean, tags[0] if len(tags) == 1 else "")
    if not tag:
        raise ModelError(
            f"The model {name!r} needs weights: set BORING_PRETRAINED (--pretrained) to a checkpoint "
            f"file{_listed(' or to one of its tags: ', tags) or '.'}"
        )
    if tag in tags:
        # Some tags were trained with another activation than the model's own; open_clip only warns.
        config = open_clip.get_pretrained_cfg(clean, tag)
        return name, tag, {"force_quick_gelu": True} if config.get("quick_gelu") else {}
    if not Path(tag).is_file():
        near = difflib.get_close_matches(tag, tags, n=5, cutoff=0.3) or tags
        raise ModelError(
            f"{tag!r} is neither a file nor a pretrained tag of {name}.{_listed(' Its tags: ', near)} "
            "Set BORING_PRETRAINED (--pretrained) to a checkpoint file or to a tag."
        )
    return name, tag, {}


@contextmanager
def _without_random_weights() -> Iterator[None]:
    """Leaves out the drawing of random weights that the checkpoint replaces: 2 s for 150 M of them.

    open_clip loads checkpoints strictly, so none can be left undrawn.
    """
    from torch import Tensor
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    draws = (Tensor.uniform_, Tensor.normal_, init.uniform_, init.normal_, init.kaiming_uniform_)

    class LeaveOut(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in draws:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    with LeaveOut():
        yield


def _listed(lead: str, names: list[str]) -> str:
    return f"{lead}{', '.join(names)}." if names else ""


def _digest(tower: "torch.nn.Module") -> str:
    import torch

    digest = hashlib.sha256()
    for key, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _open_clip_name(name: str) -> tuple[str, str] | None:
    """The model name and the pretrained tag that open_clip has for a name as people type it, or None.

    E.g. for `openai/clip-vit-base-patch32`, `google/siglip-base-patch16-224`, `vit-b-32`, or
    `laion/CLIP-ViT-B-32-laion2B-s34B-b79K`.
    """
    open_clip = import_open_clip()

    lower = name.lower()
    if match := _CLIP.fullmatch(lower):
        size, patch, large = match.groups()
        return _known(f"ViT-{_SIZES[size]}-{patch}{large or ''}", "openai")
    if match := _SIGLIP.fullmatch(lower):
        version, size, patch, pixels = match.groups()
        return _siglip(version, _SIZES[size], patch, pixels)
    for model, tag in open_clip.list_pretrained():
        if open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rstrip("/").lower() == lower:
            return model, tag
    for model in open_clip.list_models():
        if model.lower() == lower.replace("/", "-"):
            tags = open_clip.list_pretrained_tags_by_model(model)
            return model, _DEFAULT_TAGS.get(model, tags[0] if tags else "")
    return None


def _name_of_transformers_directory(folder: Path) -> tuple[str, str] | None:
    """The model name and the tag of a directory that transformers saved; None where open_clip has none."""
    open_clip = import_open_clip()

    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind, vision, text = config["model_type"], config["vision_config"], config.get("text_config", {})
        width, patch = vision.get("hidden_size", 768), vision.get("patch_size", 32 if kind == "clip" else 16)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    pixels = vision.get("image_size", 224)
    if kind in ("siglip", "siglip2") and width in _SIGLIP_WIDTHS:
        return _siglip(kind.removeprefix("siglip"), _SIGLIP_WIDTHS[width], str(patch), str(pixels))
    if kind != "clip" or width not in _CLIP_WIDTHS:
        return None
    model = f"ViT-{_CLIP_WIDTHS[width]}-{patch}{'' if pixels == 224 else f'-{pixels}'}"
    if text.get("hidden_act", "quick_gelu") == "quick_gelu":  # OpenAI's weights; LAION's have GELU
        return _known(model, "openai")
    tags = [tag for tag in open_clip.list_pretrained_tags_by_model(model) if tag.startswith("laion2b_s")]
    return _known(model, tags[-1]) if tags else None


def _siglip(version: str, size: str, patch: str, pixels: str) -> tuple[str, str] | None:
    model = f"ViT-{size}-{patch}-SigLIP{version}"
    if pixels == "224":
        return _known(model, "webli")
    # open_clip names a model of patches of 14 by the 378 pixels that it really takes.
    return _known(f"{model}-{pixels}", "webli") or _known(f"{model}-378", "webli")


def _known(model: str, tag: str) -> tuple[str, str] | None:
    open_clip = import_open_clip()

    return (model, tag) if tag in open_clip.list_pretrained_tags_by_model(model) else None
