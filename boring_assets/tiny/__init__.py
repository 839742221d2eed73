"""Name and folder of `boring-tiny`, the small model that ships with the project, for demos and tests."""

from pathlib import Path

TINY_NAME = "boring-tiny"
"""The value of the setting `model` for it."""

TINY_DIR = Path(__file__).parent
"""An open_clip model directory: `open_clip.create_model_and_transforms(f"local-dir:{TINY_DIR}")`."""
