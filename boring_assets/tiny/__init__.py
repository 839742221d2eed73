"""The small model that ships with the project, for demos and tests: its name and where it lies."""

from pathlib import Path

TINY_NAME = "boring-tiny"
"""What the setting `model` says to get it."""

TINY_DIR = Path(__file__).parent
"""An open_clip model directory: `open_clip.create_model_and_transforms(f"local-dir:{TINY_DIR}")`."""
