"""What the sensor asks for, tick by tick; that its runs do it is tried in tests/e2e."""

import base64
import json
import random
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import RunRequest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from boring_assets.attempts import DAMAGED_ATTEMPTS, Attempt, from_cursor, to_cursor
from boring_assets.commands.runs import run_range
from boring_assets.definitions import build_definitions
from boring_assets.errors import SettingsError
from boring_assets.settings import Settings
from boring_assets.tags import ADOPT_TAG, RANGE_END_TAG, RANGE_START_TAG, range_tags
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


def test_new_and_changed_shards_are_requested_once(settings: Settings, instance: dg.DagsterInstance) -> None:
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


def test_files_that_look_like_shards_and_are_none_are_named(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    (Path(settings.input_dir) / "a.zip").parent.mkdir(exist_ok=True)
    for name in ("a.zip", "B.TAR"):
        (Path(settings.input_dir) / name).write_bytes(b"x")
    said = tick(settings, instance).skip_message
    assert "B.TAR: A shard's name must end in .parquet" in said or "a.zip: Archives of this kind" in said
    assert "`boring-assets status` names all 2." in said


def test_shards_made_by_other_settings_are_not_requested(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    write(settings, 0, 3)
    tick(settings, instance)
    for key in ("00000", "00002"):
        report_done(settings, instance, key, made_with="another-model")
    assert spans(tick(settings, instance).run_requests) == [("00001", "00001")]


def test_a_tick_requests_a_limited_number_of_runs(settings: Settings, instance: dg.DagsterInstance) -> None:
    write(settings, 0, 23)
    small = settings.model_copy(update={"partitions_per_run": 2})
    first = tick(small, instance)
    assert spans(first.run_requests)[0] == ("00000", "00001")
    assert len(first.run_requests) == 10
    second = tick(small, instance, first.cursor)
    assert spans(second.run_requests) == [("00020", "00021"), ("00022", "00022")]
    assert not tick(small, instance, second.cursor).run_requests


def test_a_shard_that_returns_in_an_old_version_is_requested_again(
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
    packed = base64.b85encode(zlib.compress(json.dumps(asked).encode())).decode()
    assert spans(tick(settings, instance, packed).run_requests) == [("00001", "00001")]


def test_the_cursor_of_100_000_failed_shards_is_small() -> None:
    digits = random.Random(1)
    attempts = {
        f"{number:05d}": Attempt(
            f"{digits.getrandbits(24):06x}", 2, 0, 1_790_000_000 + number // 1000, "lost"
        )
        for number in range(100_000)
    }
    assert from_cursor(to_cursor(attempts)) == attempts
    assert len(to_cursor(attempts)) < 900_000


def fail_run(
    settings: Settings, instance: dg.DagsterInstance, first: str, last: str, error: Exception | None = None
) -> None:
    """Runs a range as a launcher does, and has it fail: by an error in the step, or by a lost process."""
    job = build_definitions(settings).resolve_job_def("embed_shards")
    if error is None:
        run = instance.create_run_for_job(job, tags=range_tags(first, last))
        instance.report_run_failed(run, "The node was taken away.")
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardSource, "find", lambda self, keys: (_ for _ in ()).throw(error))
        result = job.execute_in_process(instance=instance, tags=range_tags(first, last), raise_on_error=False)
    assert not result.success


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock forward by some seconds: the sensor's, and the one that stamps Dagster's log records.

    Ray, once a test of the same process has imported it, stamps log records with `time_ns`.
    """
    ahead = [0.0]
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + ahead[0])
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(ahead[0] * 1e9))

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


def test_a_lost_run_is_requested_again_any_number_of_times(
    settings: Settings, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    write(settings, 0, 4)
    last = tick(settings, instance)
    pauses = []
    for _ in range(10):
        assert spans(last.run_requests)[0][0] == "00000"
        for first, end in spans(last.run_requests):
            fail_run(settings, instance, first, end)
        waits = tick(settings, instance, last.cursor)
        assert not waits.run_requests
        assert "Waits until " in waits.skip_message
        assert "(The node was taken away.)" in waits.skip_message
        pauses.append(max(one.retry_at for one in from_cursor(waits.cursor).values()) - time.time())
        clock(pauses[-1] + 2)
        last = tick(settings, instance, waits.cursor)
    growing = [pause for pause in pauses if 300 < pause < 3000]  # the first ones leave time for `run_retries`
    assert growing == sorted(growing), "each pause is longer"
    assert pauses[0] < 3000 < pauses[-1] <= 3600 + 2
    # A shard that ends its process each time takes no other one with it any more.
    assert len(spans(last.run_requests)) == 4


def test_dagster_s_own_retry_comes_first(
    settings: Settings, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    write(settings, 0)
    last = tick(settings, instance)
    fail_run(settings, instance, "00000", "00000")
    last = tick(settings, instance, last.cursor)
    clock(200)  # longer than the sensor's own pause, while the daemon may still be creating the retry
    last = tick(settings, instance, last.cursor)
    assert not last.run_requests
    clock(200)
    assert spans(tick(settings, instance, last.cursor).run_requests) == [("00000", "00000")]


def test_a_wrong_setting_is_tried_again_too(
    settings: Settings, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    write(settings, 0)
    last = tick(settings, instance)
    for _ in range(DAMAGED_ATTEMPTS + 1):
        assert spans(last.run_requests) == [("00000", "00000")]
        fail_run(settings, instance, "00000", "00000", SettingsError("wrong"))
        waits = tick(settings, instance, last.cursor)
        assert "(SettingsError: wrong)" in waits.skip_message
        clock(4000)
        last = tick(settings, instance, waits.cursor)


def test_a_damaged_shard_is_requested_a_few_times_and_again_when_it_changes(
    settings: Settings, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    write(settings, 0, 2)
    parquet = Path(settings.input_dir) / "00001.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-100])
    last = tick(settings, instance)
    requests = 0
    for _ in range(DAMAGED_ATTEMPTS + 2):
        for first, end in spans(last.run_requests):
            requests += 1
            run_range(settings, instance, first, end)
        clock(4000)
        last = tick(settings, instance, last.cursor)
        if not last.run_requests:
            clock(4000)
            last = tick(settings, instance, last.cursor)
    assert requests == DAMAGED_ATTEMPTS
    assert "Not requested again until the file changes, after 3 failed runs: 00001" in last.skip_message
    assert "cannot be read as parquet" in last.skip_message
    write(settings, 1, seed=3)
    assert spans(tick(settings, instance, last.cursor).run_requests) == [("00001", "00001")]


def test_a_cancelled_run_is_not_requested_again_and_named(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    write(settings, 0)
    first = tick(settings, instance)
    job = build_definitions(settings).resolve_job_def("embed_shards")
    run = instance.create_run_for_job(job, tags=range_tags("00000", "00000"))
    instance.report_run_canceled(run)
    second = tick(settings, instance, first.cursor)
    assert not second.run_requests
    assert "Run cancelled or deleted: 00000." in second.skip_message


def test_a_run_that_lost_its_process_is_seen_by_the_next_tick(
    settings: Settings, instance: dg.DagsterInstance, clock: Callable[[float], None]
) -> None:
    """Nobody else sees it where `dagster.yaml` is empty and the launching process is gone too."""
    write(settings, 0)
    first = tick(settings, instance)
    job = build_definitions(settings).resolve_job_def("embed_shards")
    run = instance.create_run_for_job(
        job, tags=range_tags("00000", "00000"), status=dg.DagsterRunStatus.STARTED
    )
    code = (
        "import os, sys, dagster as dg\n"
        "from boring_assets.live_runs import mark_alive\n"
        "with mark_alive(dg.DagsterInstance.get(), sys.argv[1]):\n"
        "    print('alive', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, run.run_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "alive\n"
    alive = tick(settings, instance, first.cursor)
    assert "1 running" in alive.skip_message
    process.kill()
    process.wait()
    dead = tick(settings, instance, alive.cursor)
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
    assert "The process of this run ended" in dead.skip_message
    clock(4000)
    assert spans(tick(settings, instance, dead.cursor).run_requests) == [("00000", "00000")]


def test_a_lost_shard_is_requested_once(settings: Settings, instance: dg.DagsterInstance) -> None:
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
