"""Two datasets as two code locations of one webserver and one daemon, as docs/scale.md has them."""

from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster import DagsterRunStatus

from boring_assets.datasets import Dataset
from boring_assets.sample_data import write_sample_data
from tests.e2e.processes import PROJECT, Home
from tests.e2e.test_backfill import LAUNCH, backfill
from tests.waiting import wait_for

DEFINITIONS = """from pathlib import Path

from boring_assets.definitions import build_definitions
from boring_assets.settings import load_settings

defs = build_definitions(load_settings(Path(__file__).with_suffix(".toml")))
"""
IMAGES = 3


def add_dataset(root: Path, name: str, shards: int, seed: int) -> tuple[Dataset, Home, list[str]]:
    """Writes a dataset with its own settings; returns it, its folders, and the keys of its shards."""
    folders = Home(root / name)
    paths = write_sample_data(folders.input, shards, IMAGES, "webdataset", image_size=64, seed=seed)
    (root / f"{name}.py").write_text(DEFINITIONS)
    settings = {**settings_of(folders), "partitions_per_run": 10}
    (root / f"{name}.toml").write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    return Dataset(name), folders, [path.stem for path in paths]


@pytest.mark.heavy
def test_two_datasets_share_a_daemon_and_a_device(home: Home) -> None:
    one, first, ones = add_dataset(home.root, "part_1", 24, seed=1)
    two, second, twos = add_dataset(home.root, "part_2", 6, seed=2)
    workspace = home.root / "workspace.yaml"
    entries = [
        {"python_file": {"relative_path": f"{dataset.name}.py", "location_name": dataset.name}}
        for dataset in (one, two)
    ]
    workspace.write_text(yaml.safe_dump({"load_from": entries}))
    done = home.run("boring-assets", "register", **settings_of(first))
    assert done.returncode == 0, done.stderr
    assert (one.keys(home.instance), two.keys(home.instance)) == (ones, [])

    with home.webserver(str(workspace)) as server, home.daemon(str(workspace)):
        params = {"partitionNames": ones, "assetSelection": [{"path": one.embeddings.path}]}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        server.turn_on("new_shards", "part_2")
        home.wait_for_runs(4)
        wait_for(
            lambda: backfill(server, launched["backfillId"])["status"] == "COMPLETED_SUCCESS",
            "the backfill is complete",
            lambda: backfill(server, launched["backfillId"]),
        )
        assert server.partitions(one.embeddings) == {"materialized": ones}
        assert server.partitions(two.embeddings) == {"materialized": twos}

    runs = home.runs()
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    assert home.instance.get_dynamic_partitions("shards") == []
    for dataset, where, keys in ((one, first, ones), (two, second, twos)):
        assert dataset.keys(home.instance) == keys
        records = home.instance.fetch_materializations(dataset.embeddings, limit=100).records
        assert sorted(str(record.partition_key) for record in records) == keys
        uris = {str(record.asset_materialization.metadata["source_uri"].value) for record in records}
        assert all(str(where.input) in uri for uri in uris)
        where.check_committed(keys, images=IMAGES)
    home.check_one_at_a_time()  # the pool is the instance's: both datasets wait for one device
    status = home.run("boring-assets", "status", **settings_of(second))
    assert status.returncode == 0, status.stdout + status.stderr
    assert status.stdout.split()[:2] == ["done", "6"]


def settings_of(folders: Home) -> dict[str, str]:
    """Returns the settings of one dataset's command line."""
    return {
        "dataset": folders.root.name,
        "input_dir": str(folders.input),
        "output_dir": str(folders.output),
    }


def test_the_document_has_the_file_that_is_tried_here() -> None:
    assert DEFINITIONS in (PROJECT / "docs" / "scale.md").read_text()


def test_a_dataset_without_a_name_has_names_without_a_prefix() -> None:
    assert Dataset().embeddings == dg.AssetKey("image_embeddings")
    assert Dataset().shards.name == "shards"
    assert Dataset("a").asset("clip_scores") == dg.AssetKey(["a", "clip_scores"])
