"""The package as `pip install .` installs it, without the checkout beside it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from boring_assets.sample_data import write_sample_data
from tests.waiting import HANG_SECONDS

PROJECT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_home_of_an_installed_package_has_the_projects_dagster_yaml(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "site"
    source.mkdir()  # pip builds in the folder of the source
    for name in ("boring_assets", "partitions", "resources"):
        shutil.copytree(PROJECT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "dagster.yaml"):
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--target", installed, source], check=True, capture_output=True, timeout=HANG_SECONDS
    )
    (entry_points,) = installed.glob("boring_assets-*.dist-info/entry_points.txt")
    assert "[dagster_dg_cli.registry_modules]\nboring_assets = boring_assets" in entry_points.read_text()

    write_sample_data(tmp_path / "in", 1, 2, "webdataset", image_size=32)
    code = "from boring_assets.cli import main; main()"
    command = [sys.executable, "-c", code, "register", "--input", "in", "--output", "out"]
    env = {**os.environ, "PYTHONPATH": str(installed), "DAGSTER_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()
