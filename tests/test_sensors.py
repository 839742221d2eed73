"""What the sensor asks for, tick by tick; that its runs do it is tried in tests/e2e."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import RunRequest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from boring_assets.definitions import build_definitions
from boring_assets.sensors import _pack, _unpack
from boring_assets.settings import Settings
from boring_assets.tags import ADOPT_TAG, RANGE_END_TAG, RANGE_START_TAG
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.test_shard_states import instance, report_done, settings, write
from tests.waiting import HANG_SECONDS

__all__ = ["instance", "settings"]


def tick(settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> SensorExecutionData:
    resources = {
        "source": ShardSource.from_settings(settings),
        "embeddings": EmbeddingsIOManager.from_settings(settings),
    }
    sensor = build_definitions(settings).resolve_sensor_def("new_shards")
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources)
    return sensor.evaluate_tick(context)


def spans(requests: list[RunRequest]) -> list[tuple[str, str]]:
    assert all(request.tags[ADOPT_TAG] == "true" for request in requests)
    return [(request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) for request in requests]


def test_new_and_changed_shards_are_asked_for_once(settings: Settings, instance: dg.DagsterInstance) -> None:
    write(settings, 0, 5)
    (Path(settings.input_dir) / "00003_stats.json").unlink()  # growing
    first = tick(settings, instance)
    assert spans(first.run_requests) == [("00000", "00004")]
    assert instance.get_dynamic_partitions("shards") == ["00000", "00001", "00002", "00004"]
    again = tick(settings, instance, first.cursor)
    assert not again.run_requests
    assert "4 new" in again.skip_message
    assert "1 growing" in again.skip_message

    for key in ("00000", "00001", "00002"):
        report_done(settings, instance, key)
    write(settings, 1, seed=1)
    assert spans(tick(settings, instance, again.cursor).run_requests) == [("00001", "00001")]


def test_what_other_settings_made_is_left_alone(settings: Settings, instance: dg.DagsterInstance) -> None:
    write(settings, 0, 3)
    tick(settings, instance)
    for key in ("00000", "00002"):
        report_done(settings, instance, key, made_with="another-model")
    assert spans(tick(settings, instance).run_requests) == [("00001", "00001")]


def test_a_tick_asks_for_a_bounded_number_of_runs(settings: Settings, instance: dg.DagsterInstance) -> None:
    write(settings, 0, 23)
    small = settings.model_copy(update={"partitions_per_run": 2})
    first = tick(small, instance)
    assert spans(first.run_requests)[0] == ("00000", "00001")
    assert len(first.run_requests) == 10
    second = tick(small, instance, first.cursor)
    assert spans(second.run_requests) == [("00020", "00021"), ("00022", "00022")]
    assert not tick(small, instance, second.cursor).run_requests


def test_a_shard_that_comes_back_in_an_old_version_is_asked_for_again(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    write(settings, 0)
    parquet = Path(settings.input_dir) / "00000.parquet"
    old = shutil.copy2(parquet, parquet.with_suffix(".old"))
    one = tick(settings, instance)
    report_done(settings, instance, "00000")
    write(settings, 0, seed=1)
    two = tick(settings, instance, one.cursor)
    report_done(settings, instance, "00000")
    shutil.copy2(old, parquet)
    three = tick(settings, instance, two.cursor)
    assert [spans(each.run_requests) for each in (one, two, three)] == [[("00000", "00000")]] * 3
    # Dagster drops a request that carries a key it has seen.
    assert [each.run_requests[0].run_key for each in (one, two, three)] == [None] * 3


def test_the_cursor_is_short_and_that_of_an_earlier_version_is_understood(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    write(settings, 0, 3)
    first = tick(settings, instance)
    asked = {shard.key: shard.version for shard in ShardSource.from_settings(settings).discover().shards}
    assert spans(first.run_requests) == [("00000", "00002")]
    assert not tick(settings, instance, json.dumps(asked)).run_requests
    asked["00001"] = "another version"
    assert spans(tick(settings, instance, json.dumps(asked)).run_requests) == [("00001", "00001")]
    many = {f"{number:05d}": f"{number:016x}" for number in range(1000)}
    assert _unpack(_pack(many)) == many
    assert len(_pack(many)) < len(json.dumps(many)) / 2


def test_a_lost_shard_is_asked_for_once(settings: Settings, instance: dg.DagsterInstance) -> None:
    write(settings, 0, 2)
    for key in ("00000", "00001"):
        report_done(settings, instance, key)
    (Path(settings.output_dir) / "image_embeddings" / "00001.parquet").unlink()
    first = tick(settings, instance)
    assert spans(first.run_requests) == [("00001", "00001")]
    second = tick(settings, instance, first.cursor)
    assert not second.run_requests
    assert "1 lost" in second.skip_message


def test_an_input_that_is_missing_fails_the_tick(settings: Settings, instance: dg.DagsterInstance) -> None:
    Path(settings.input_dir).rmdir()
    with pytest.raises(dg.Failure, match=settings.input_dir) as caught:
        tick(settings, instance)
    assert "StorageError" in (caught.value.description or "")


def test_definitions_load_without_the_gpu_stack() -> None:
    heavy = ("torch", "torchvision", "open_clip", "openvino", "polars", "transformers")
    code = (
        "import sys, boring_assets.definitions, boring_assets.cli\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
