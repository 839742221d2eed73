"""Fixtures for the engine: the small model that ships with the project, on the CPU in fp32."""

import pytest

from boring_assets.engine.encoder import Encoder
from boring_assets.engine.model import ClipModel, load_model
from boring_assets.tiny import TINY_NAME


@pytest.fixture
def tiny() -> ClipModel:
    """A fresh copy, which a test may change."""
    return load_model(TINY_NAME)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """A shared one: tests only embed with it. The batch is small, so that shards share batches."""
    return Encoder(load_model(TINY_NAME), device="cpu", precision="fp32", batch_size=16)
