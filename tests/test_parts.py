"""A split dataset: its parts have partitions and assets of their own, and one output, index and status."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from boring_assets.datasets import Dataset
from boring_assets.definitions import build_definitions
from boring_assets.errors import StorageError
from boring_assets.instance.homes import open_instance
from boring_assets.output.judgement import CHECKS
from boring_assets.parts import assign, get_parts, read_parts, register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.tags import RANGE_END_TAG, RANGE_START_TAG, range_tags
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.command_line import CommandLine
from tests.test_component import QUIET, component

SPLIT = 4
SAMPLES = 4


def add_folder(source: Path, name: str, shards: int) -> list[str]:
    paths = write_sample_data(source / name, shards, SAMPLES, "parquet", image_size=16, seed=ord(name))
    return [f"{name}/{path.stem}" for path in paths]


class Split:
    """An input in folders, split into parts of four shards, with the command line and the sensor."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.output = folder / "in", folder / "out"
        self.cli = CommandLine(folder)
        for name, value in self.cli.env.items():
            monkeypatch.setenv(name, value)
        self.settings = Settings(
            input_dir=str(self.source), output_dir=str(self.output), split=SPLIT, quiet_seconds=3600
        )
        self.instance = open_instance(self.settings.output_dir)

    def __call__(self, *arguments: object, code: int = 0) -> str:
        return self.cli(*arguments, code=code, BORING_SPLIT=str(SPLIT), BORING_QUIET_SECONDS="3600").output

    def partitions(self) -> dict[str, list[str]]:
        return {part.part: part.keys(self.instance) for part in get_parts(self.settings)}

    def tick(self, defs: dg.Definitions, cursor: str | None = None) -> SensorExecutionData:
        resources = {
            "source": ShardSource.from_settings(self.settings),
            "embeddings": EmbeddingsIOManager.from_settings(self.settings),
        }
        context = dg.build_sensor_context(instance=self.instance, cursor=cursor, resources=resources)
        return defs.resolve_sensor_def("new_shards").evaluate_tick(context)

    def status(self, code: int = 0) -> dict[str, str]:
        found: dict[str, str] = json.loads(self("status", self.source, self.output, "--json", code=code))[
            "shards"
        ]
        return found

    def events(self, part: int) -> dict[str, dg.AssetMaterialization]:
        asset = Dataset().of_part(part).embeddings
        records = self.instance.fetch_materializations(asset, limit=100, ascending=True).records
        return {
            str(one.partition_key): one.asset_materialization for one in records if one.asset_materialization
        }


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    return Split(tmp_path, monkeypatch)


def spans(tick: SensorExecutionData) -> list[tuple[str | None, str, str]]:
    return [
        (request.job_name, request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG])
        for request in tick.run_requests
    ]


def test_parts_are_embedded_one_by_one_and_read_as_one(split: Split) -> None:
    first = [*add_folder(split.source, "a", 2), *add_folder(split.source, "b", 2)]
    second = add_folder(split.source, "c", 3)
    early = build_definitions(split.settings)
    one = split.tick(early)
    assert split.partitions() == {"part_001": first, "part_002": second}
    assert spans(one) == [("part_001_embed_shards", "a/00000", "b/00001")]
    assert "New parts: part_002. Reload the code location" in str(split.tick(early, one.cursor).skip_message)

    defs = build_definitions(split.settings)
    two = split.tick(defs, one.cursor)
    assert spans(two) == [("part_002_embed_shards", "c/00000", "c/00002")]
    done = defs.resolve_job_def("part_001_embed_shards").execute_in_process(
        instance=split.instance, tags=range_tags("a/00000", "b/00001"), run_config=QUIET
    )
    assert done.success
    assert split.status(code=4) == {**dict.fromkeys(first, "done"), **dict.fromkeys(second, "new")}

    # A backfill of a part in the UI has its checks in the same run; they look at that part alone.
    key = Dataset().of_part(2).embeddings
    backfilled = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=split.instance,
        asset_selection=[key],
        tags={RANGE_START_TAG: "c/00000", RANGE_END_TAG: "c/00001"},
        run_config=QUIET,
    )
    assert list(split.events(2)) == second[:2]
    checks = backfilled.get_asset_check_evaluations()
    assert {(check.asset_key, check.metadata["partitions"].value) for check in checks} == {(key, 2)}

    third = add_folder(split.source, "d", 2)  # one place is left in the second part
    split("embed", split.source, split.output)
    assert split.partitions() == {"part_001": first, "part_002": second, "part_003": third}
    assert split.status() == dict.fromkeys(first + second + third, "done")
    assert [len(split.events(part)) for part in (1, 2, 3)] == [4, 3, 2]
    totals = json.loads((split.output / "metadata.json").read_text())
    assert (totals["num_shards"], totals["num_samples"]) == (9, 9 * SAMPLES)
    assert f"holds {9 * SAMPLES} images" in split("index", split.output)
    split("verify", split.output, "--input", split.source)
    assert [part["shards"] for part in read_parts(split.settings)] == [4, 3, 2]


def test_what_was_embedded_unsplit_is_taken_over(split: Split) -> None:
    keys = [*add_folder(split.source, "a", 3), *add_folder(split.source, "b", 3)]
    split.cli("embed", split.source, split.output)
    before = split.cli.stamps(split.output)
    assert sorted(before) == keys
    split("embed", split.source, split.output)
    assert split.cli.stamps(split.output) == before
    assert split.partitions() == {"part_001": keys[:3], "part_002": keys[3:]}
    events = [*split.events(1).values(), *split.events(2).values()]
    assert len(events) == 6
    assert all("adopted" in event.metadata for event in events)
    assert split.status() == dict.fromkeys(keys, "done")
    assert "Nothing to do" in split("embed", split.source, split.output)
    refused = split.cli("embed", split.source, split.output, code=1).output
    assert "is split into parts. Set BORING_SPLIT" in refused
    assert split.instance.get_dynamic_partitions("shards") == keys


def test_a_shard_leaves_its_own_part(split: Split) -> None:
    keys = [*add_folder(split.source, "a", 4), *add_folder(split.source, "b", 1)]
    split("embed", split.source, split.output)
    for path in (split.source / "b").iterdir():
        path.unlink()
    split("prune", "--input", split.source, "--output", split.output, "--yes")
    assert split.partitions() == {"part_001": keys[:4], "part_002": []}
    assert split.status() == dict.fromkeys(keys[:4], "done")


def test_a_shard_that_two_processes_registered_at_once_stays_in_the_first_part(split: Split) -> None:
    keys = add_folder(split.source, "a", 5)
    found = ShardSource.from_settings(split.settings).discover()
    register_shards(split.instance, found, split.settings)
    split.instance.add_dynamic_partitions("part_002_shards", keys[:1])
    register_shards(split.instance, found, split.settings)
    assert split.partitions() == {"part_001": keys[:4], "part_002": keys[4:]}
    (split.output / ".parts.json").unlink()  # Dagster's own record says how many parts there are
    register_shards(split.instance, found, split.settings)
    assert split.partitions() == {"part_001": keys[:4], "part_002": keys[4:]}


def test_split_datasets_have_different_names(tmp_path: Path) -> None:
    """And each part has all that an unsplit dataset has."""
    plain: Any = component(tmp_path, dataset="laion").get_repository_def()
    both = dg.Definitions.merge(
        component(tmp_path, dataset="laion", split=SPLIT),
        component(tmp_path, dataset="photos", split=SPLIT, output_dir=str(tmp_path / "photos")),
    )
    graph = both.get_repository_def().asset_graph
    part = dg.AssetKey(["laion", "part_001", "image_embeddings"])
    assert graph.get(part).partitions_def == Dataset("laion").of_part(1).shards
    assert graph.get(dg.AssetKey(["photos", "embedding_index"])).parent_keys == {
        dg.AssetKey(["photos", "part_001", "image_embeddings"])
    }
    assert {key.name for key in graph.asset_check_keys if key.asset_key == part} == set(CHECKS)
    assert len(graph.get_all_asset_keys()) == 2 * len(plain.asset_graph.get_all_asset_keys())


def test_definitions_say_that_the_output_cannot_be_read(split: Split) -> None:
    (split.output.parent / "file").touch()
    settings = split.settings.model_copy(update={"output_dir": str(split.output.parent / "file" / "out")})
    with pytest.raises(StorageError, match=r"\.parts\.json"):
        build_definitions(settings)


@pytest.mark.parametrize(
    ("new", "counts", "expected"),
    [
        (["1", "2"], [], [["1", "2"]]),
        (["1", "2", "3", "4", "5"], [], [["1", "2", "3", "4"], ["5"]]),
        (["1"], [4, 3], [[], ["1"]]),
        (["1"], [1, 4], [[], [], ["1"]]),
        (["1"], [9], [[], ["1"]]),
        (["a/1", "a/2", "a/3", "b/1", "b/2"], [], [["a/1", "a/2", "a/3"], ["b/1", "b/2"]]),
        (["a/1", "b/1", "b/2", "c/1"], [], [["a/1", "b/1", "b/2", "c/1"]]),
        (["a/1", *(f"b/{n}" for n in range(5))], [], [["a/1"], ["b/0", "b/1", "b/2", "b/3"], ["b/4"]]),
        ([], [2], [[]]),
    ],
)
def test_parts_are_filled_and_end_between_folders(
    new: list[str], counts: list[int], expected: list[list[str]]
) -> None:
    assert assign(new, counts, SPLIT) == expected
