"""Heads: small functions from embeddings to a label or a number. No image is decoded for them.

A head is one or more linear layers. Zero-shot labels are one layer too: its weights are the embeddings of the
labels' texts (https://arxiv.org/abs/2103.00020, section 3.1.2).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from boring_assets.errors import SettingsError

if TYPE_CHECKING:
    from boring_assets.engine.model.text import TextEncoder

_ROWS = 8192
_LAYER = re.compile(r"(?:(?P<name>.*?)(?P<number>\d+)\.)?(?P<kind>weight|bias)")
Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Head:
    """A head, ready to use.

    Attributes:
        layers: Weight, float32 [out, in], and bias, float32 [out], of each layer.
        labels: Names of the outputs; empty for one number.
        activation: `none` or `relu`, between the layers.
    """

    layers: Sequence[Layer]
    labels: tuple[str, ...] = ()
    activation: str = "none"

    @property
    def dim(self) -> int:
        """Length of the embeddings that it takes."""
        return int(self.layers[0][0].shape[1])

    def outputs(self, vectors: np.ndarray) -> np.ndarray:
        """Computes float32 [n, outputs] of float32 or float16 [n, dim], L2-normalized."""
        parts = [self._outputs(vectors[at : at + _ROWS]) for at in range(0, len(vectors), _ROWS)]
        return np.concatenate(parts) if parts else np.empty((0, max(1, len(self.labels))), np.float32)

    def _outputs(self, vectors: np.ndarray) -> np.ndarray:
        values = vectors.astype(np.float32, copy=False)
        for number, (weight, bias) in enumerate(self.layers):
            if number and self.activation == "relu":
                values = np.maximum(values, 0)
            values = values @ weight.T + bias
        return values

    def choose(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chooses a label for each row, by the softmax of the outputs.

        Returns:
            int64 [n], the number of the best label; float32 [n], its probability among the labels.
        """
        outputs = self.outputs(vectors)
        best = outputs.argmax(axis=1)
        odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return best, (1 / odds.sum(axis=1)).astype(np.float32)


def zero_shot(texts: "TextEncoder", labels: Sequence[str], templates: Sequence[str]) -> Head:
    """Makes a head that chooses the label whose text is nearest to the image.

    It has one layer, scaled by the model's own temperature. Templates are texts with `{}` for the label; the
    embeddings of each label's texts are averaged.
    """
    weights = []
    for label in labels:
        mean = texts.encode([template.replace("{}", label) for template in templates]).mean(axis=0)
        weights.append(mean / np.linalg.norm(mean))
    weight = np.stack(weights) * np.float32(texts.logit_scale)
    return Head([(weight, np.zeros(len(labels), np.float32))], tuple(labels))


def read_head(data: bytes, uri: str, labels: Sequence[str] = (), activation: str = "none") -> Head:
    """Reads a head from the bytes of a safetensors file.

    The file has `weight` and `bias` of one linear layer, or `layers.N.weight` and `layers.N.bias` of an MLP
    (https://github.com/christophschuhmann/improved-aesthetic-predictor), under any name before the number. A
    missing bias is zero. Layers without an activation between them are joined into one.

    Raises:
        SettingsError: It is no such file, or has other outputs than labels.
    """
    layers = _layers(data, uri)
    for (before, _), (after, _) in pairwise(layers):
        if before.shape[0] != after.shape[1]:
            raise SettingsError(
                f"The head {uri} has a layer with {before.shape[0]} outputs before one with "
                f"{after.shape[1]} inputs. Expected the layers of one MLP, in the order of their numbers."
            )
    outputs = len(layers[-1][1])
    if outputs != max(1, len(labels)):
        raise SettingsError(
            f"The head {uri} has {outputs} outputs, but {len(labels)} labels are set. Set `labels` to the "
            "name of each output, in order; leave it out only if there is one output."
        )
    return Head(_joined(layers) if activation == "none" else layers, tuple(labels), activation)


def read_metadata(data: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file (https://huggingface.co/docs/safetensors)."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__") or {})


def _layers(data: bytes, uri: str) -> list[Layer]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: Mapping[str, np.ndarray] = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"The head {uri} cannot be read as safetensors ({error}). Expected float32 or float16 weights of "
            "a linear layer or an MLP."
        ) from error
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if not match or tensor.ndim != (2 if match["kind"] == "weight" else 1):
            raise SettingsError(
                f"The head {uri} holds the tensor {name} of shape {list(tensor.shape)}. Expected only "
                "`weight` [out, in] and `bias` [out] of linear layers, e.g. `layers.0.weight`."
            )
        place = (match["name"] or "", int(match["number"] or 0))
        found.setdefault(place, {})[match["kind"]] = tensor.astype(np.float32)
    if not found or any("weight" not in layer for layer in found.values()) or len({n for n, _ in found}) > 1:
        raise SettingsError(
            f"The head {uri} holds {', '.join(sorted(tensors)) or 'nothing'}. Expected the weights of one "
            "linear layer or of one MLP: `weight` and `bias`, or `layers.N.weight` and `layers.N.bias`."
        )
    layers = []
    for _, layer in sorted(found.items()):
        weight, bias = layer["weight"], layer.get("bias", np.zeros(len(layer["weight"]), np.float32))
        if len(bias) != len(weight):
            raise SettingsError(
                f"The head {uri} has {len(weight)} outputs but a bias of {len(bias)} numbers."
            )
        layers.append((weight, bias))
    return layers


def _joined(layers: Sequence[Layer]) -> list[Layer]:
    """The one layer that gives the same as linear layers one after another."""
    weight, bias = (array.astype(np.float64) for array in layers[0])
    for after, more in layers[1:]:
        weight, bias = after.astype(np.float64) @ weight, after.astype(np.float64) @ bias + more
    return [(weight.astype(np.float32), bias.astype(np.float32))]
