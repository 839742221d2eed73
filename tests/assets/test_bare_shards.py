"""Folders of bare webdataset tars and of TFRecord files through Dagster: sensor, runs, changes, failures."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from boring_assets.output.schema import read_facts
from boring_assets.shard_states import State
from boring_assets.tags import RANGE_END_TAG, RANGE_START_TAG
from resources.source import ShardSource
from tests.assets.project import Project, metadata_of
from tests.engine.inputs.test_streamed import example, framed
from tests.engine.kinds import jpeg, write_tar
from tests.test_sensors import tick

Write = Callable[[Path, int, int], None]


def tar(path: Path, rows: int, seed: int = 0) -> None:
    """Samples of an image and a caption; the second image is broken, the third is not there."""
    members = []
    for row in range(rows):
        if row != 2:
            members.append((f"{row:05}.jpg", b"<html>" if row == 1 else jpeg(seed + row)))
        members.append((f"{row:05}.txt", f"no {row}".encode()))
    write_tar(path.with_suffix(".tar"), members)


def tfrecord(path: Path, rows: int, seed: int = 0) -> None:
    records = []
    for row in range(rows):
        image = {"jpg": b"<html>" if row == 1 else jpeg(seed + row)} if row != 2 else {}
        records.append(framed(example(key=f"{row:05}".encode(), caption=f"no {row}".encode(), **image)))
    path.with_suffix(".tfrecord").write_bytes(b"".join(records))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "in").mkdir()
    return Project(
        tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", quiet_seconds=0, max_shard_rows=20
    )


def asked(project: Project) -> list[tuple[str, str]]:
    """The ranges that the sensor asks for; it registers what is new."""
    requests = tick(project.settings, project.instance).run_requests
    return [(request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) for request in requests]


@pytest.mark.parametrize(("write", "suffix"), [(tar, ".tar"), (tfrecord, ".tfrecord")])
def test_the_sensor_embeds_lone_tars_and_a_changed_one_again(
    project: Project, write: Write, suffix: str
) -> None:
    folder = Path(project.settings.input_dir)
    for number, rows in enumerate((12, 5, 7)):
        write(folder / f"{number:05}", rows, 0)
    assert asked(project) == [("00000", "00002")]
    assert not project.run("00000", "00002").error
    assert project.states() == dict.fromkeys(("00000", "00001", "00002"), State.DONE)
    assert asked(project) == []

    found = {shard.key: shard for shard in ShardSource.from_settings(project.settings).discover().shards}
    for event, rows in zip(project.events(), (12, 5, 7), strict=True):
        said, key = metadata_of(event), str(event.partition)
        assert (said["embedded"], said["failed"]) == (rows - 2, 2)
        table, failures = project.table(key), project.table(key, "image_failures")
        assert Counter(failures["reason"].to_pylist()) == {"decode_error": 1, "missing_image": 1}
        assert sorted([*failures["key"].to_pylist(), *table["key"].to_pylist()]) == [
            f"{row:05}" for row in range(rows)
        ]
        assert table["caption"].to_pylist()[0] == "no 0"
        facts = read_facts(table.schema.metadata)
        assert facts["source_version"] == found[key].version
        assert str(facts["source_uri"]).endswith(f"/{key}{suffix}")
        assert (facts["rows"], facts["embedded"], facts["failed"]) == (rows, rows - 2, 2)

    before = {key: project.path(key).stat().st_mtime_ns for key in found}
    write(folder / "00001", 6, 50)
    assert project.states()["00001"] is State.CHANGED
    assert asked(project) == [("00001", "00001")]
    assert not project.run("00001").error
    assert project.table("00001").num_rows == 4
    assert {key for key in found if project.path(key).stat().st_mtime_ns != before[key]} == {"00001"}
    assert set(project.states().values()) == {State.DONE}

    write(folder / "00003", 21, 0)
    content = (folder / "00000").with_suffix(suffix).read_bytes()
    (folder / "00004").with_suffix(suffix).write_bytes(content[: len(content) // 2])
    shutil.copy((folder / "00002").with_suffix(suffix), (folder / "00005").with_suffix(suffix))
    assert asked(project) == [("00003", "00005")]
    error = project.run("00003", "00005").error
    assert "2 of 3 shards failed" in error
    assert "BORING_MAX_SHARD_ROWS" in error
    assert f"00004{suffix}" in error
    assert project.table("00005").num_rows == 5
    assert project.states() == {
        **dict.fromkeys(("00000", "00001", "00002", "00005"), State.DONE),
        "00003": State.FAILED,
        "00004": State.FAILED,
    }
