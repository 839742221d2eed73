"""Fixtures of the end-to-end tests."""

from pathlib import Path

import pytest

from tests.e2e.processes import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A fresh Dagster home, an empty input and an output."""
    return Home.make(tmp_path)
