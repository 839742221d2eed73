"""PostgreSQL as deploy/postgres/dagster.yaml has it: connections stay open from one statement to the next."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from boring_assets.definitions import build_definitions
from boring_assets.instance.homes import open_instance
from boring_assets.jobs import EMBED_JOB
from boring_assets.settings import Settings
from boring_assets.tags import range_tags
from partitions.shards import SHARDS
from tests.postgres import Postgres

CONFIG = Path(__file__).parents[2] / "deploy" / "postgres" / "dagster.yaml"


def sessions(postgres: Postgres, database: str) -> int:
    """How many connections a database has had."""
    with postgres.connection("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT sessions FROM pg_stat_database WHERE datname = %s", [database])
        return int(cursor.fetchone()[0])


def open_home(folder: Path) -> dg.DagsterInstance:
    """Opens an instance as Dagster's daemon does."""
    folder.mkdir()
    shutil.copyfile(CONFIG, folder / "dagster.yaml")
    instance = dg.DagsterInstance.from_config(str(folder))
    assert instance.run_coordinator
    return instance


@pytest.mark.parametrize("process", ["daemon", "command line"])
def test_a_run_of_many_partitions_opens_few_connections(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    database = postgres.new_database()
    for name, value in {**postgres.env(database), "DAGSTER_LOGS_BUCKET": "logs"}.items():
        monkeypatch.setenv(name, value)
    if process == "daemon":
        instance = open_home(tmp_path / "home")
    else:
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
        shutil.copyfile(CONFIG, tmp_path / "dagster.yaml")
        instance = open_instance("out")
    keys = [f"{number:05d}" for number in range(60)]
    assert SHARDS.name
    instance.add_dynamic_partitions(SHARDS.name, keys)
    before = sessions(postgres, database)
    run = instance.create_run_for_job(
        build_definitions(Settings()).resolve_job_def(EMBED_JOB), tags=range_tags(keys[0], keys[-1])
    )
    planned = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    assert len(instance.all_logs(run.run_id, of_type=planned)) == len(keys)
    assert sessions(postgres, database) - before < len(keys) / 3
