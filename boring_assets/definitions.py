"""The definitions of the dataset that the environment's settings name; `workspace.yaml` loads them."""

from boring_assets.component import build_definitions
from boring_assets.settings import load_settings

__all__ = ["build_definitions", "defs"]

defs = build_definitions(load_settings())
