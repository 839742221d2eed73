"""The settings of a head: a small function over the embeddings, which `image_labels` computes.

[heads.colour]                                   # zero-shot: the column `colour`, and `colour_score`
labels = ["red", "green", "blue"]
templates = ["a photo of a {} thing"]

[heads.aesthetic]                                # a linear layer or an MLP: a number
weights = "s3://bucket/aesthetic-l14.safetensors"
model = "ViT-L-14"
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from boring_assets.secrets import CREDENTIALS

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
# Names of columns that the embeddings, the index and the exports have already.
_TAKEN = {"row", "key", "url", "caption", "partition", "load", "vector", "embedding", "score", "clip_score"}


class HeadSettings(BaseModel):
    """One head.

    Attributes:
        labels: The labels to choose from; with `weights`, the names of its outputs. A head without labels
            returns a number.
        templates: For zero-shot: texts with `{}` for the label. Their embeddings are averaged.
        weights: Path or URI of a safetensors file with a linear layer or an MLP. Empty is zero-shot.
        activation: The function between the layers of the MLP. LAION's aesthetic predictor has `none`.
        model: The model that the head was trained for; empty is any of its dimension.
        pretrained: That model's pretrained tag; empty is any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = Field(("a photo of a {}",), min_length=1)
    weights: str = ""
    activation: Literal["none", "relu"] = "none"
    model: str = ""
    pretrained: str = ""

    @field_validator("weights")
    @classmethod
    def _refuse_credentials(cls, value: str) -> str:
        if CREDENTIALS.search(value):
            raise _wrong("it holds credentials. Take them out, and set AWS's own variables")
        return value

    @model_validator(mode="after")
    def _check(self) -> "HeadSettings":
        if not self.weights and len(self.labels) < 2:
            raise _wrong("a head needs `weights`, or at least two `labels` to choose from")
        if len(set(self.labels)) != len(self.labels):
            raise _wrong("two of its `labels` are the same")
        if wrong := [text for text in self.templates if text.count("{}") != 1]:
            raise _wrong(f"the template {wrong[0]!r} must have one `{{}}`, where the label goes")
        return self


def check_heads(value: object) -> object:
    """Reads heads from JSON, as an environment variable has them, and checks their names.

    Raises:
        PydanticCustomError: It is not JSON, or a name cannot be a column's.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError as error:
            raise _wrong(
                f"it is not JSON ({error}). Heads are easier to write in the settings file"
            ) from error
    if isinstance(value, Mapping):
        for name in value:
            _check_name(str(name), value)
    return value


def _check_name(name: str, heads: Mapping[Any, object]) -> None:
    if not _NAME.fullmatch(name) or name.lower().startswith("meta_"):
        raise _wrong(f"the head {name!r} must have a name of letters, digits and `_`, and not `meta_...`")
    others = {str(other).lower() for other in heads if other != name}
    if name.lower() in _TAKEN or {name.lower(), f"{name.lower()}_score"} & others:
        raise _wrong(f"the head {name!r} has the name of another column. Give it another name")


def _wrong(text: str) -> PydanticCustomError:
    return PydanticCustomError("heads", "{text}.", {"text": text})
