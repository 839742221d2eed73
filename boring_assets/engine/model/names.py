"""What open_clip calls a model that people know by its name on the Hugging Face hub."""

import json
import re
from pathlib import Path

from boring_assets.engine.model.imports import import_open_clip

DEFAULT_TAGS = {"ViT-B-32": "laion2b_s34b_b79k"}
_SIZES = {"base": "B", "large": "L", "so400m": "SO400M", "giant-opt": "gopt"}
_CLIP_WIDTHS = {768: "B", 1024: "L", 1280: "H", 1664: "bigG"}
_SIGLIP_WIDTHS = {768: "B", 1024: "L", 1152: "SO400M", 1536: "gopt"}
_CLIP = re.compile(r"(?:openai/)?clip-vit-(base|large)-patch(\d+)(-336)?")
_SIGLIP = re.compile(r"(?:google/)?siglip(2?)-(base|large|so400m|giant-opt)-patch(\d+)-(\d+)")


def open_clip_name(name: str) -> tuple[str, str] | None:
    """The model name and the pretrained tag that open_clip has for a model; None where it has none.

    Args:
        name: As people type it: `openai/clip-vit-base-patch32`, `google/siglip-base-patch16-224`,
            `laion/CLIP-ViT-B-32-laion2B-s34B-b79K`, `vit-b-32`.
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
            return model, DEFAULT_TAGS.get(model, tags[0] if tags else "")
    return None


def name_of_transformers_directory(folder: Path) -> tuple[str, str] | None:
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
