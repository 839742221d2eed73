"""What is done and what is not, in every state that a shard can be in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from boring_assets.commands.runs import run_range
from boring_assets.datasets import ASSET_KEY
from boring_assets.instance.homes import open_instance
from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.shard_states import State, data_version, get_shard_states, ranges
from boring_assets.tags import DATA_VERSION_TAG
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "input").mkdir()
    return Settings(
        input_dir=str(tmp_path / "input"),
        output_dir=str(tmp_path / "output"),
        model="boring-tiny",
        device="cpu",
        quiet_seconds=3600,
    )


@pytest.fixture
def instance(settings: Settings) -> dg.DagsterInstance:
    return open_instance(settings.output_dir)


def write(settings: Settings, first: int, count: int = 1, seed: int = 0) -> None:
    write_sample_data(
        Path(settings.input_dir), count, 4, "parquet", image_size=16, seed=seed, first_shard=first
    )


def report_done(settings: Settings, instance: dg.DagsterInstance, key: str, made_with: str = "") -> None:
    """Records a shard as embedded in its present version, and puts a file where its embeddings go."""
    (shard,) = [shard for shard in ShardSource.from_settings(settings).discover().shards if shard.key == key]
    version = data_version(shard.version, made_with or settings.embedding_version())
    instance.report_runless_asset_event(
        dg.AssetMaterialization(ASSET_KEY, partition=key, tags={DATA_VERSION_TAG: version})
    )
    path = Path(settings.output_dir) / "image_embeddings" / f"{key}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def states(settings: Settings, instance: dg.DagsterInstance) -> dict[str, State]:
    found = ShardSource.from_settings(settings).discover()
    committed = EmbeddingsIOManager.from_settings(settings).committed
    return get_shard_states(instance, found, settings.embedding_version(), committed).states


def test_each_state_is_recognized(settings: Settings, instance: dg.DagsterInstance) -> None:
    folder = Path(settings.input_dir)
    write(settings, 0, 8)
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    for number in (0, 1, 3, 4, 6):
        report_done(settings, instance, f"{number:05d}")
    report_done(settings, instance, "00002", made_with="another-model")

    write(settings, 1, seed=1)  # changed
    (folder / "00003.parquet").unlink()  # gone
    (Path(settings.output_dir) / "image_embeddings" / "00004.parquet").unlink()  # lost
    (folder / "00005.parquet").unlink()
    assert run_range(settings, instance, "00005", "00005").failed_shards.keys() == {"00005"}
    write(settings, 5, seed=1)  # failed, and back again
    (folder / "00006_stats.json").unlink()  # growing again, after it was done
    (folder / "00009.parquet").write_bytes(b"")  # growing

    assert states(settings, instance) == {
        "00000": State.DONE,
        "00001": State.CHANGED,
        "00002": State.OTHER_SETTINGS,
        "00003": State.GONE,
        "00004": State.LOST,
        "00005": State.FAILED,
        "00006": State.GROWING,
        "00007": State.NEW,
        "00009": State.GROWING,
    }


def test_a_lost_partition_that_fails_again_is_failed(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    write(settings, 0)
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    report_done(settings, instance, "00000")
    (Path(settings.output_dir) / "image_embeddings" / "00000.parquet").unlink()
    parquet = Path(settings.input_dir) / "00000.parquet"
    hidden = parquet.rename(parquet.with_suffix(".hidden"))
    assert run_range(settings, instance, "00000", "00000").error
    hidden.rename(parquet)  # the same version as before
    assert states(settings, instance) == {"00000": State.FAILED}


def test_a_shard_that_is_finished_while_the_states_are_read_is_not_new(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(settings, 0)
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    finished: list[str] = []

    def finish(read: Callable[..., Any]) -> Callable[..., Any]:
        def first_read(*arguments: Any) -> Any:
            answer = read(*arguments)
            if not finished:
                finished.append("00000")
                report_done(settings, instance, "00000")
            return answer

        return first_read

    storage = instance.event_log_storage
    monkeypatch.setattr(instance, "get_status_by_partition", finish(instance.get_status_by_partition))
    monkeypatch.setattr(storage, "get_latest_tags_by_partition", finish(storage.get_latest_tags_by_partition))
    assert states(settings, instance) == {"00000": State.DONE}
    assert finished


def test_register_adds_what_is_new_in_order(settings: Settings, instance: dg.DagsterInstance) -> None:
    source = ShardSource.from_settings(settings)
    for number, new in ((5, ["00005", "00006"]), (0, ["00000", "00001"])):
        write(settings, number, 2)
        assert register_shards(instance, source.discover(), settings) == new
    assert register_shards(instance, source.discover(), settings) == []
    assert list(instance.get_dynamic_partitions("shards")) == ["00005", "00006", "00000", "00001"]
    assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 1


def test_register_leaves_a_pool_limit_that_was_set(settings: Settings, instance: dg.DagsterInstance) -> None:
    instance.event_log_storage.set_concurrency_slots("gpu", 4)
    write(settings, 0)
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 4


@pytest.mark.parametrize(
    ("wanted", "most", "expected"),
    [
        ("", 3, []),
        ("c", 3, [("c", "c", 1)]),
        ("abdf", 3, [("a", "b", 2), ("d", "d", 1), ("f", "f", 1)]),
        ("gfedcba", 3, [("a", "c", 3), ("d", "f", 3), ("g", "g", 1)]),
        ("abcdefg", 1, [(key, key, 1) for key in "abcdefg"]),
        ("abz", 9, [("a", "b", 2)]),
    ],
)
def test_a_selection_becomes_contiguous_ranges(wanted: str, most: int, expected: list) -> None:
    assert ranges(list("abcdefg"), wanted, most) == expected


def test_without_a_default_the_pool_has_a_slot_for_each_device_and_none_is_lost(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    settings = settings.model_copy(update={"device": "auto"})
    write(settings, 0, 1)
    found = ShardSource.from_settings(settings).discover()
    (tmp_path / "plain").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "plain")) as plain:
        storage = plain.event_log_storage
        register_shards(plain, found, settings)
        assert [(limit.name, limit.limit) for limit in storage.get_pool_limits()] == [("gpu", 2)]

        @dg.job
        def killed() -> None: ...

        run = plain.create_run_for_job(killed)
        storage.claim_concurrency_slot("gpu", run.run_id, "step")
        register_shards(plain, found, settings)
        assert storage.get_concurrency_info("gpu").active_run_ids == {run.run_id}
        plain.report_run_failed(run, "killed")
        register_shards(plain, found, settings)
        assert storage.get_concurrency_info("gpu").active_run_ids == set()
