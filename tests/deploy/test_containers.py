"""The containers' own commands and health checks, run here against a real PostgreSQL and a real SeaweedFS."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import s3fs

from boring_assets.datasets import ASSET_KEY
from boring_assets.instance.homes import WORKER_TAG
from boring_assets.sample_data import write_sample_data
from tests.deploy.containers import DOCKER, Containers, read_compose
from tests.e2e.test_backfill import LAUNCH
from tests.e2e.webserver import Webserver
from tests.postgres import Postgres
from tests.waiting import wait_for

RUNS = "{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }"
KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test"}


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    """All services but PostgreSQL, which runs already, with an .env that is filled in as the example says."""
    with Postgres() as server:
        filled = {
            **KEYS,
            "POSTGRES_PASSWORD": server.password,
            "BORING_MODEL": "boring-tiny",
            "BORING_DEVICE": "cpu",
            "BORING_QUIET_SECONDS": "0",
        }
        example = (DOCKER / ".env.example").read_text().splitlines()
        lines = [line for line in example if line.partition("=")[0] not in filled]
        env_file = tmp_path / ".env"
        env_file.write_text("\n".join([*lines, *(f"{name}={value}" for name, value in filled.items())]))
        containers = Containers(tmp_path, env_file)
        containers.ports["5432"] = str(server.port)
        with server.connection("postgres") as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE dagster")
        yield containers


def filesystem(containers: Containers) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=KEYS["AWS_ACCESS_KEY_ID"],
        secret=KEYS["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=f"http://127.0.0.1:{containers.ports['8333']}",
        skip_instance_cache=True,
        use_listings_cache=False,
    )


@pytest.mark.slow
def test_all_services_work_together(containers: Containers, tmp_path: Path) -> None:
    write_sample_data(tmp_path / "shards", 2, 6, "webdataset", broken=1, image_size=32)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        healthy = dict(
            zip(containers.services, pool.map(containers.is_healthy, containers.services), strict=True)
        )
        assert [name for name, is_healthy in healthy.items() if is_healthy] == [
            "postgres"
        ]  # the others are not started yet
        for names in (("seaweedfs", "code"), ("webserver", "daemon")):
            for name in names:
                stack.enter_context(containers.start(name))
            list(pool.map(containers.wait_until_healthy, names))
        fs = filesystem(containers)
        fs.put(f"{tmp_path / 'shards'}/", "boring/input/", recursive=True)
        registered = containers.run("code", "boring-assets", "register")
        assert registered.stdout == "2 shards registered.\n", registered.stderr

        server = Webserver(f"http://127.0.0.1:{containers.ports['3000']}/graphql")
        params = {"partitionNames": ["00000", "00001"], "assetSelection": [{"path": ASSET_KEY.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

        def runs() -> list[dict[str, Any]]:
            return server.ask(RUNS)["runsOrError"]["results"]

        wait_for(lambda: [run["status"] for run in runs()] == ["SUCCESS"], "the run is done", runs)
        assert server.partitions() == {"materialized": ["00000", "00001"]}
        (run,) = runs()
        assert WORKER_TAG in {tag["key"] for tag in run["tags"]}  # executed by the daemon's container, warm
        totals = json.loads(fs.cat_file("boring/output/metadata.json"))
        assert (totals["num_samples"], totals["num_failed"], totals["num_shards"]) == (10, 2, 2)
        assert fs.find(f"boring-logs/dagster/storage/{run['runId']}/compute_logs")


def test_a_required_variable_is_named() -> None:
    with pytest.raises(ValueError, match="POSTGRES_PASSWORD: set it in"):
        read_compose({})
