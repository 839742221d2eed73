"""Two components in somebody's `dg` project, on an empty dagster.yaml, beside resources of the same names."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from boring_assets.datasets import Dataset
from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from resources.source import ShardSource
from tests.e2e.processes import SCRIPTS, Webserver, free_port, running, wait_for
from tests.e2e.test_backfill import LAUNCH, backfill
from tests.waiting import HANG_SECONDS

IMAGES = 4
# As create-dagster makes it.
PYPROJECT = """[project]
name = "my-project"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "my_project"
registry_modules = ["my_project.components.*"]
"""
DEFINITIONS = """from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
OWN = """import dagster as dg


class Camera(dg.ConfigurableResource):
    frames: int = 24


@dg.asset
def film(clip: Camera, source: Camera) -> int:
    return clip.frames + source.frames


@dg.asset(
    partitions_def=dg.DynamicPartitionsDefinition(name="laion_shards"),
    ins={"embeddings": dg.AssetIn(dg.AssetKey(["laion", "image_embeddings"]))},
)
def row_counts(context: dg.AssetExecutionContext, embeddings) -> None:
    context.add_output_metadata({"rows": embeddings.collect().height})


@dg.definitions
def defs():
    return dg.Definitions(assets=[film, row_counts], resources={"clip": Camera(), "source": Camera()})
"""
RUN = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""


@dataclass(frozen=True)
class Project:
    """A `dg` project in a folder, with an empty dagster.yaml."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Project":
        package = root / "my-project" / "src" / "my_project"
        for name in ("defs", "components"):
            (package / name).mkdir(parents=True)
            (package / name / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "definitions.py").write_text(DEFINITIONS)
        (package / "defs" / "own.py").write_text(OWN)
        (root / "my-project" / "pyproject.toml").write_text(PYPROJECT)
        (root / "home").mkdir()
        (root / "home" / "dagster.yaml").touch()
        return cls(root)

    @property
    def env(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.folder / "src"), os.environ.get("PYTHONPATH", "")]))
        settings = {"BORING_DEVICE": "cpu", "BORING_SENSOR_SECONDS": "1", "BORING_PARTITIONS_PER_RUN": "10"}
        scripts = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
        home = {"DAGSTER_HOME": str(self.root / "home"), "PYTHONPATH": path, "PATH": scripts}
        return {**os.environ, **settings, **home}

    @property
    def folder(self) -> Path:
        return self.root / "my-project"

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [SCRIPTS / "dg", *command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def add_dataset(self, name: str, shards: int) -> list[str]:
        """Scaffolds a component, and registers the shards of its input as its sensor does."""
        paths = write_sample_data(self.root / name / "in", shards, IMAGES, "webdataset", image_size=32)
        where = ("--input-dir", str(self.root / name / "in"), "--output-dir", str(self.root / name / "out"))
        self.run("scaffold", "defs", "boring_assets.ImageEmbeddings", name, *where, "--model", "boring-tiny")
        return [path.stem for path in paths]

    @contextmanager
    def dev(self) -> Iterator[Webserver]:
        """`dg dev`: webserver and daemon."""
        port = free_port()
        command = [str(SCRIPTS / "dg"), "dev", "--host", "127.0.0.1", "--port", str(port)]
        with running(command, self.root / "dev.txt", self.env, self.folder):
            server = Webserver(f"http://127.0.0.1:{port}/graphql")
            wait_for(server.is_up, "the webserver answers")
            yield server

    @property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.root / "home"))

    def wait_for_runs(self, count: int) -> list[dg.DagsterRun]:
        def finished() -> list[dg.DagsterRun]:
            runs = list(self.instance.get_runs(ascending=True))
            return runs if len(runs) >= count and all(run.is_finished for run in runs) else []

        return wait_for(
            finished, f"{count} runs are finished", lambda: [run.status for run in self.instance.get_runs()]
        )

    def messages(self, run: dg.DagsterRun) -> str:
        return "\n".join(log.user_message or "" for log in self.instance.all_logs(run.run_id))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.make(tmp_path)


def location(server: Webserver) -> dict[str, str]:
    query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
    (node,) = server.ask(query)["repositoriesOrError"]["nodes"]
    return {"repositoryName": node["name"], "repositoryLocationName": node["location"]["name"]}


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_from_scaffold_to_embeddings_beside_the_users_own(project: Project) -> None:
    assert "boring_assets.ImageEmbeddings" in project.run("list", "components", "--json")
    laion, photos = project.add_dataset("laion", 30), project.add_dataset("photos", 3)
    project.run("check", "yaml")
    project.run("check", "defs")
    defs = json.loads(project.run("list", "defs", "--json"))
    keys = {asset["asset_key"] for asset in defs["assets"]}
    assert {"laion/image_embeddings", "photos/image_embeddings", "film"} <= keys

    project.instance.get_dynamic_partitions("")  # two processes that set up a home at once can collide
    with project.dev() as server:
        where = location(server)
        server.turn_on("photos_new_shards", where["repositoryLocationName"])
        (run,) = project.wait_for_runs(1)
        assert run.status is dg.DagsterRunStatus.SUCCESS, project.messages(run)
        assert server.partitions(Dataset("photos").embeddings) == {"materialized": photos}
        assert project.instance.event_log_storage.get_concurrency_info("gpu").slot_count == 1

        embeddings = Dataset("laion").embeddings
        settings = Settings(input_dir=str(project.root / "laion" / "in"), dataset="laion", device="cpu")
        register_shards(project.instance, ShardSource.from_settings(settings).discover(), settings)
        params = {"partitionNames": laion, "assetSelection": [{"path": embeddings.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        wait_for(
            lambda: backfill(server, launched["backfillId"])["status"] == "COMPLETED_SUCCESS",
            "the backfill is complete",
            lambda: backfill(server, launched["backfillId"]),
        )
        assert server.partitions(embeddings) == {"materialized": laion}
        check_one_step_at_a_time(project, project.wait_for_runs(4)[1:])

        one = launch(project, server, where, {"boring_laion_clip": {"config": {"batch_size": 8}}})
        assert one.status is dg.DagsterRunStatus.SUCCESS, project.messages(one)
        assert "batches of 8, model boring-tiny" in project.messages(one)
        event = project.instance.get_latest_materialization_event(dg.AssetKey("row_counts"))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.run_id == one.run_id, "the downstream asset ran in the same run"
        assert event.asset_materialization.metadata["rows"].value == IMAGES


def launch(project: Project, server: Webserver, where: dict[str, str], resources: Any) -> dg.DagsterRun:
    """Materializes a partition and the asset downstream with a run configuration, as the launchpad does."""
    selected = [{"path": ["laion", "image_embeddings"]}, {"path": ["row_counts"]}]
    params = {
        "selector": {**where, "jobName": "__ASSET_JOB", "assetSelection": selected},
        "runConfigData": {"resources": resources},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "00004"}]},
    }
    launched = server.ask(RUN, params=params)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    runs = project.wait_for_runs(5)
    return next(run for run in runs if run.run_id == launched["run"]["runId"])


def check_one_step_at_a_time(project: Project, runs: list[dg.DagsterRun]) -> None:
    """The steps of different runs did not overlap: they had one device."""
    spans = []
    for run in runs:
        (step,) = [
            stats
            for stats in project.instance.get_run_step_stats(run.run_id)
            if stats.step_key == "laion__image_embeddings"
        ]
        spans.append((step.start_time, step.end_time))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), spans
