"""Refuses models that bring Python code of their own, which transformers would run."""

import json
from pathlib import Path
from typing import Any

from boring_assets.errors import ModelError

_HUB = "hf-hub:"
_VOCABULARIES = ("vocab.json", "tokenizer.json", "added_tokens.json")


def check_model(target: str) -> dict[str, Any]:
    """The `text_cfg` of a model, `local-dir:PATH` or `hf-hub:ORG/NAME`, that asks for no code to be run.

    Of a hub model, the JSON files are fetched.

    Raises:
        ModelError: A JSON file of the model, or of the hub's models that it takes its tokenizer or text tower
            from, has an `auto_map` or a `trust_remote_code`.
        OSError: The hub cannot be reached, and the files are not in its cache.
    """
    folder = _fetch(target.removeprefix(_HUB)) if target.startswith(_HUB) else None
    config = _read(target, folder or Path(target.removeprefix("local-dir:")))
    text: dict[str, Any] = config.get("model_cfg", {}).get("text_cfg", {})
    for name in ("hf_tokenizer_name", "hf_model_name"):
        other = str(text.get(name) or "")
        if "/" in other and not Path(other).exists() and (folder or name == "hf_model_name"):
            _read(f"{_HUB}{other}", _fetch(other))
        elif other and Path(other).is_dir():
            _read(other, Path(other))
    return text


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.json"]))


def _read(model: str, folder: Path) -> dict[str, Any]:
    """The folder's `open_clip_config.json`, after a look at every JSON file below the folder."""
    config: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.json")):
        if file.name in _VOCABULARIES:  # words and their numbers
            continue

        def refuse(entry: dict[str, Any], file: Path = file) -> dict[str, Any]:
            for key in ("auto_map", "trust_remote_code"):
                if entry.get(key):
                    raise ModelError(
                        f"The model {model} is refused: its {file.relative_to(folder)} has the entry {key}, "
                        "which makes transformers run Python code that comes with the model. Use a model "
                        "without code of its own, or remove the entry if the model works without it."
                    )
            return entry

        try:
            found = json.loads(file.read_bytes(), object_hook=refuse)
        except (ValueError, RecursionError):  # whoever reads it next says so
            continue
        if file == folder / "open_clip_config.json" and isinstance(found, dict):
            config = found
    return config
