"""Several workers at once, as `boring-assets embed --num-workers N` uses them."""

import os
import subprocess
import uuid
from pathlib import Path

import psutil
import pytest

from boring_assets.commands.parallel import Workers
from boring_assets.engine.results import Progress
from boring_assets.sample_data import write_sample_data
from boring_assets.shard_states import State
from tests.assets.project import Project
from tests.command_line import CommandLine
from tests.waiting import wait_for


def test_two_workers_share_the_shards_and_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample_data(tmp_path / "in", 4, 20, "webdataset", broken=1, image_size=64)
    mine = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out")
    for name in ("input_dir", "output_dir", "model"):
        monkeypatch.setenv(f"BORING_{name.upper()}", str(getattr(mine.settings, name)))
    monkeypatch.setenv("BORING_DEVICE", "cpu:0,cpu:1")  # they stand for two GPUs
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the locks of devices are
    monkeypatch.setenv("BORING_PRECISION", "fp32")
    mine.register()
    progress = Progress()

    run_ids = [str(uuid.uuid4()), str(uuid.uuid4())]
    shares = iter([("", "00000", "00001", run_ids[0]), ("", "00002", "00003", run_ids[1])])
    outcomes = Workers(shares, progress).run(2)

    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert (progress.embedded, progress.failed) == (76, 4)
    assert set(mine.states().values()) == {State.DONE}
    runs = mine.instance.get_runs()
    assert len(runs) == 2
    assert {run.run_id for run in runs} == set(run_ids)
    devices = {event.metadata["device"].value for event in mine.events()}
    assert devices == {"cpu:0", "cpu:1"}
    assert sum(mine.table(f"0000{number}").num_rows for number in range(4)) == 76


def test_a_worker_that_dies_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORING_BATCH_SIZE", "0")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    outcomes = Workers(iter([("", "00000", "00000", str(uuid.uuid4()))]), Progress()).run(1)
    assert [outcome.stops for outcome in outcomes] == [True]
    assert "code 1" in outcomes[0].error


def test_workers_share_the_cores() -> None:
    from boring_assets.commands.parallel import _environment

    cores = len(os.sched_getaffinity(0))
    assert int(_environment(2)["BORING_DECODE_WORKERS"]) == max(1, cores // 2)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_others_do_the_shards_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    """All but those of the range that it was at."""
    command = CommandLine(tmp_path)
    source = command.sample_data("in", shards=40, samples=10)
    options = ("--num-workers", 2, "--quiet-seconds", 0)
    run = command.start("embed", source, tmp_path / "out", *options, stderr=subprocess.PIPE)
    committed = (tmp_path / "out" / "image_embeddings").glob
    wait_for(lambda: [*committed("*.parquet")] or run.poll() is not None, "a shard is committed", every=0.02)
    workers = [
        child
        for child in psutil.Process(run.pid).children()
        if child.cmdline()[2:3] == ["boring_assets.commands.parallel"]
    ]
    workers[0].kill()
    _, error = run.communicate()
    assert run.returncode == 1
    assert b"A worker process ended with code -9." in error
    assert len(workers) == 2
    assert 25 <= len([*committed("*.parquet")]) < 40
    command("embed", source, tmp_path / "out", "--quiet-seconds", 0)
    assert len([*committed("*.parquet")]) == 40


def test_workers_end_when_their_command_line_is_killed(tmp_path: Path) -> None:
    """Going on, they would meet the next command's run over the same shards."""
    command = CommandLine(tmp_path)
    source = command.sample_data("in", shards=40, samples=40)
    options = ("--num-workers", 2, "--quiet-seconds", 0, "--batch-size", 1)
    run = command.start("embed", source, tmp_path / "out", *options, start_new_session=True)
    committed = (tmp_path / "out" / "image_embeddings").glob
    wait_for(lambda: [*committed("*.parquet")] or run.poll() is not None, "a shard is committed", every=0.02)
    assert run.poll() is None
    run.kill()
    run.wait()
    wait_for(lambda: not group_is_alive(run.pid), "its workers have ended")
    assert len([*committed("*.parquet")]) < 40, "before their work was done"
