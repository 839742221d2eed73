"""The model's text tower: captions and queries to embeddings that lie beside the images'."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from boring_assets.engine.model.devices import pick_device, pick_precision, torch_dtype
from boring_assets.engine.model.imports import import_open_clip
from boring_assets.engine.model.load import ClipModel, resolve
from boring_assets.engine.model.trust import check_model
from boring_assets.errors import ModelError

BATCH = 256


class TextEncoder:
    """A model's text tower, ready on one device."""

    def __init__(self, model: ClipModel, device: str = "auto", precision: str = "auto") -> None:
        """Moves the model to the device, in place; its `Encoder` must have the same settings.

        Raises:
            ModelError: There is no such device, its memory is too small, or the tokenizer cannot be had.
        """
        import torch

        self.model = model
        self._device = pick_device(device)
        dtype = torch_dtype(pick_precision(precision, self._device))
        self._tokenize = _tokenizer(model)
        try:
            model.module.to(device=self._device, dtype=dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{self._device} has too little memory for {model.name}: {error}") from error

    @property
    def logit_scale(self) -> float:
        """What the model multiplies cosines by before a softmax: the inverse of its temperature."""
        return float(self.model.module.logit_scale.float().exp())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts; what is longer than the model's context is cut off by its own tokenizer.

        Returns:
            float32 [len(texts), dim], L2-normalized.
        """
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                tokens = self._tokenize(list(texts[start : start + BATCH])).to(self._device)
                found = self.model.module.encode_text(tokens).to(torch.float32)
                parts.append(torch.nn.functional.normalize(found, dim=-1).cpu().numpy())
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _tokenizer(model: ClipModel) -> Any:
    open_clip = import_open_clip()

    try:
        target = resolve(*model.loaded_from)[0]
        if ":" in target:
            text = check_model(target)
        else:
            target = target.replace("/", "-")
            text = (open_clip.get_model_config(target) or {}).get("text_cfg", {})
        # Without this, transformers asks in a terminal whether it may run a model's code.
        options = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        return open_clip.get_tokenizer(target, **options)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"The tokenizer of {model.name} cannot be loaded ({type(error).__name__}: {str(error)[:500]}). "
            "Check that the machine can reach it, or use a model directory that holds it."
        ) from error
