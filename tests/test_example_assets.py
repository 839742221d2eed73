"""The examples of docs/labels.md: assets of a user's own that send embeddings on, run as they stand."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from boring_assets.component import build_definitions
from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from resources.source import ShardSource
from tests.e2e.processes import PROJECT
from tests.postgres import Postgres, program

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
NAMES = ("qdrant_asset", "pgvector_asset")


class Project:
    """Two shards, and the definitions of this project with an example beside them."""

    def __init__(self, folder: Path, example: str) -> None:
        path = PROJECT / "docs" / "examples" / f"{example}.py"
        spec = importlib.util.spec_from_file_location(example, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (asset,) = dg.load_assets_from_modules([module])
        self.input, self.output = folder / "in", folder / "out"
        settings = Settings(
            input_dir=str(self.input), output_dir=str(self.output), model="boring-tiny", device="cpu",
            precision="fp32", quiet_seconds=0,
        )  # fmt: skip
        self.defs = dg.Definitions.merge(build_definitions(settings), dg.Definitions(assets=[asset]))
        assert isinstance(asset, dg.AssetsDefinition)
        self.name = asset.key.to_user_string()
        self.instance = dg.DagsterInstance.ephemeral()
        write_sample_data(self.input, 2, 12, "parquet", image_size=32)
        register_shards(self.instance, ShardSource.from_settings(settings).discover(), settings)

    def materialize(self, first: str, last: str, *names: str) -> None:
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        selection = [dg.AssetKey(name) for name in names]
        job = self.defs.resolve_implicit_job_def_def_for_assets(selection)
        assert job is not None
        assert job.execute_in_process(
            instance=self.instance, asset_selection=selection, run_config=QUIET, tags=tags
        ).success

    def rows(self) -> pl.DataFrame:
        files = sorted((self.output / "image_embeddings").glob("*.parquet"))
        return pl.concat([pl.read_parquet(file).with_columns(shard=pl.lit(file.stem)) for file in files])

    def check_with(self, find: Any) -> None:
        """Compares what a store finds with what is committed: at first, after a change, and a removal.

        Args:
            find: Gives the keys of all rows, and that of the nearest one to a vector.
        """
        self.materialize("00000", "00001", "image_embeddings", self.name)
        rows = self.rows()
        keys, nearest = find(rows["embedding"].to_list()[7])
        assert sorted(keys) == sorted(rows["key"])
        assert nearest == rows["key"][7]

        write_sample_data(self.input, 1, 9, "parquet", image_size=32, seed=3)
        self.materialize("00000", "00000", "image_embeddings")
        self.materialize("00000", "00001", self.name)
        rows = self.rows()
        keys, nearest = find(rows["embedding"].to_list()[2])
        assert sorted(keys) == sorted(rows["key"])
        assert (len(keys), nearest) == (21, rows["key"][2])

        self.instance.delete_dynamic_partition("shards", "00001")
        self.materialize("00000", "00000", self.name)
        keys, _ = find(rows["embedding"].to_list()[2])
        assert sorted(keys) == sorted(rows.filter(pl.col("shard") == "00000")["key"])


def test_qdrant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    monkeypatch.setenv("QDRANT_FOLDER", str(tmp_path / "qdrant"))

    def find(vector: list[float]) -> tuple[list[str], str]:
        client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
        points, _ = client.scroll("images", limit=100)
        (best,) = client.query_points("images", query=vector, limit=1).points
        client.close()
        return [point.payload["key"] for point in points], best.payload["key"]

    Project(tmp_path, "qdrant_asset").check_with(find)


@pytest.fixture
def pgvector() -> Iterator[Postgres]:
    if program("initdb", "vector") is None:
        pytest.skip("no PostgreSQL with pgvector; on Debian: apt-get install postgresql-15-pgvector")
    with Postgres("vector") as server:
        yield server


@pytest.mark.heavy
def test_pgvector(pgvector: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = pgvector.new_database()
    for name, value in pgvector.env(database).items():
        monkeypatch.setenv(name.replace("DAGSTER_POSTGRES_", "PG").replace("PGDB", "PGDATABASE"), value)
    assert os.environ["PGDATABASE"] == database

    def find(vector: list[float]) -> tuple[list[str], str]:
        with pgvector.connection(database) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT key FROM images ORDER BY embedding <=> %s::vector", (str(vector),))
            keys = [key for (key,) in cursor.fetchall()]
        return keys, keys[0]

    Project(tmp_path, "pgvector_asset").check_with(find)


@pytest.mark.parametrize("name", NAMES)
def test_the_document_shows_the_example_as_it_is(name: str) -> None:
    document = (PROJECT / "docs" / "labels.md").read_text()
    assert f"```python\n{(PROJECT / 'docs' / 'examples' / f'{name}.py').read_text()}```" in document
