"""CLIP embeddings of image shards, kept up to date by Dagster."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The Dagster component, imported late: the command line must not load Dagster for its help."""
    if name == "ImageEmbeddings":
        return importlib.import_module("boring_assets.component").ImageEmbeddings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "ImageEmbeddings"]
