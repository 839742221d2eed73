"""The examples of docs/engine.md, run as their reader would, against the project's own output."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from boring_assets.engine.samples import Reason
from tests.command_line import CommandLine
from tests.e2e.processes import PROJECT
from tests.waiting import HANG_SECONDS

EXAMPLES = PROJECT / "docs" / "examples"
NAMES = sorted(path.name for path in EXAMPLES.glob("*.py") if not path.stem.endswith("_asset"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with broken images in `in`, and what the project made of them in `out`."""
    made = tmp_path_factory.mktemp("examples")
    cli = CommandLine(made)
    cli.sample_data("in", "--broken", 6, samples=40)
    cli("embed", made / "in", made / "out", "--quiet-seconds", 0)
    return made


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy if "ray" in name else ()) for name in NAMES]
)
def test_an_example_gives_what_the_project_gives(name: str, folder: Path) -> None:
    whole = name == "shards.py"
    source = folder / "in" if whole else folder / "in" / "00000.parquet"
    target = folder / Path(name).stem
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, source, target, "boring-tiny"],
        env={**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    ours = pl.concat(pl.read_parquet(path) for path in sorted((folder / "out/image_embeddings").glob("*")))
    failures = pl.concat(pl.read_parquet(path) for path in sorted((folder / "out/image_failures").glob("*")))
    if whole:
        files = sorted(target.glob("*.parquet"))
        theirs = pl.concat(pl.read_parquet(path) for path in files if "failures" not in path.name)
        assert pl.concat(pl.read_parquet(path) for path in files if "failures" in path.name).equals(failures)
    else:
        shard = pl.read_parquet(source)
        ours, failures = (one.filter(pl.col("key").is_in(shard["key"].to_list())) for one in (ours, failures))
        answers = pl.read_parquet(target if target.is_file() else target / "*.parquet")
        assert answers["key"].to_list() == shard["key"].to_list(), "each row has an answer, in order"
        failed = answers.filter(pl.col("reason").is_not_null())
        assert failed["embedding"].null_count() == len(failed) == len(failures) > 0
        # A row that was never downloaded is, outside of its shard, one without an image.
        expected = failures["reason"].replace(Reason.NOT_DOWNLOADED, Reason.MISSING_IMAGE)
        assert failed["reason"].to_list() == expected.to_list()
        theirs = answers.filter(pl.col("reason").is_null())

    assert theirs["key"].to_list() == ours["key"].to_list()
    a, b = (np.array(one["embedding"].to_list()) for one in (ours, theirs))
    assert np.einsum("nd,nd->n", a, b).min() > 0.9999
    assert np.allclose(np.linalg.norm(b, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_document_shows_the_example_as_it_is(name: str) -> None:
    document = (PROJECT / "docs" / "engine.md").read_text()
    assert f"```python\n{(EXAMPLES / name).read_text()}```" in document
