"""The asset, in real runs: what is recorded, what is taken over, and what a failure costs."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.output.schema import read_facts
from boring_assets.sample_data import write_sample_data
from boring_assets.shard_states import State
from tests.assets.project import Project, metadata_of

NewProject = Callable[..., Project]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewProject:
    """Makes a project over `in` with its output in `out`; each call is a new one over the same folders."""

    def make(**settings: Any) -> Project:
        return Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", **settings)

    return make


def shards(tmp_path: Path, count: int, rows: int = 8, broken: int = 2, **more: Any) -> list[Path]:
    return write_sample_data(tmp_path / "in", count, rows, "webdataset", broken=broken, image_size=32, **more)


def written_at(project: Project, key: str) -> tuple[int, int]:
    return (
        project.path(key).stat().st_mtime_ns,
        project.path(key, "image_failures").stat().st_mtime_ns,
    )


def totals(project: Project) -> dict[str, Any]:
    path = Path(project.settings.output_dir) / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_each_materialization_has_the_counts_of_its_partition(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 2)
    mine = project()
    keys = mine.register()
    assert mine.states() == {"00000": State.NEW, "00001": State.NEW}
    assert mine.run("00000", "00001").error == ""
    assert [event.partition for event in mine.events()] == keys
    for event in mine.events():
        metadata = metadata_of(event)
        facts = read_facts(pq.read_schema(mine.path(event.partition or "")).metadata)
        assert (metadata["rows"], metadata["embedded"], metadata["failed"]) == (8, 6, 2)
        assert metadata["failed_by_reason"] == {"not_downloaded": 1, "decode_error": 1}
        assert metadata["source_uri"] == facts["source_uri"]
        assert metadata["output_uri"] == f"file://{mine.path(event.partition or '')}"
        assert metadata["failures_uri"] == f"file://{mine.path(event.partition or '', 'image_failures')}"
        assert metadata["seconds"] >= 0
        assert metadata["images_per_second"] > 0
        assert metadata["preview"].count("\n") == 6
    assert mine.states() == {"00000": State.DONE, "00001": State.DONE}


def test_committed_shards_are_adopted(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 2)
    mine = project()
    mine.register()
    mine.run("00000", "00001")
    before = [written_at(mine, key) for key in ("00000", "00001")]
    first = sorted(mine.events(), key=lambda event: event.partition or "")
    runs = mine.instance.get_runs()

    assert mine.run("00000", "00001").error == ""
    again = mine.events()[2:]
    assert [written_at(mine, key) for key in ("00000", "00001")] == before
    assert [event.partition for event in again] == ["00000", "00001"]
    for old, new in zip(first, again, strict=True):
        assert new.tags == old.tags
        metadata = metadata_of(new)
        assert "earlier run" in metadata.pop("adopted")
        assert metadata.pop("embedded_by") == runs[0].run_id
        assert metadata == metadata_of(old)
    assert set(mine.states().values()) == {State.DONE}

    assert mine.run_anew("00000").success, "a backfill of the web UI computes anew"
    assert "adopted" not in mine.events()[-1].metadata
    assert all(new > old for new, old in zip(written_at(mine, "00000"), before[0], strict=True))
    assert written_at(mine, "00001") == before[1]


def test_changed_and_lost_shards_are_embedded_again(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 3)
    mine = project()
    mine.register()
    mine.run("00000", "00002")
    shards(tmp_path, 1, seed=5)
    mine.path("00001").unlink()
    assert mine.states() == {"00000": State.CHANGED, "00001": State.LOST, "00002": State.DONE}
    old = mine.table("00000")
    assert mine.run("00000", "00002").error == ""
    again = [event.partition or "" for event in mine.events()[3:] if "adopted" not in event.metadata]
    assert sorted(again) == ["00000", "00001"]
    assert not mine.table("00000")["url"].equals(old["url"])
    assert set(mine.states().values()) == {State.DONE}
    assert totals(mine)["num_samples"] == 18


def test_a_changed_tar_is_a_changed_shard(tmp_path: Path, project: NewProject) -> None:
    (parquet,) = shards(tmp_path, 1)
    mine = project()
    mine.register()
    mine.run("00000")
    os.utime(parquet.with_suffix(".tar"), (1, 1))
    assert mine.states() == {"00000": State.CHANGED}
    assert mine.run("00000").error == ""
    assert "adopted" not in mine.events()[-1].metadata


def test_shards_of_other_settings_are_embedded_again(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 1)
    project().register()
    project().run("00000")
    half = project(output_dtype="float16")
    assert half.states() == {"00000": State.OTHER_SETTINGS}
    assert half.run("00000").error == ""
    assert half.table("00000").schema.field("embedding").type.value_type == pa.float16()
    assert half.states() == {"00000": State.DONE}
    assert project().states() == {"00000": State.OTHER_SETTINGS}


def test_shards_cut_by_max_samples_are_completed_later(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 3, broken=0)
    mine = project()
    mine.register()
    assert mine.run("00000", "00002", max_samples=11).error == ""
    assert sorted(event.partition or "" for event in mine.events()) == ["00000", "00001"]
    assert [mine.table(key).num_rows for key in ("00000", "00001")] == [8, 3]
    assert read_facts(pq.read_schema(mine.path("00001")).metadata)["rows_left_out"] == 5
    assert mine.states() == {"00000": State.DONE, "00001": State.CHANGED, "00002": State.NEW}
    assert totals(mine)["num_samples"] == 11

    assert mine.run("00000", "00002").error == ""
    assert [mine.table(f"0000{shard}").num_rows for shard in range(3)] == [8, 8, 8]
    assert [event.partition for event in mine.events()[2:] if "adopted" in event.metadata] == ["00000"]
    assert set(mine.states().values()) == {State.DONE}


def test_bad_shards_do_not_fail_the_others(tmp_path: Path, project: NewProject) -> None:
    paths = shards(tmp_path, 4)
    mine = project()
    mine.register()
    paths[0].write_bytes(b"no parquet at all")
    tar = paths[2].with_suffix(".tar")
    tar.write_bytes(tar.read_bytes()[:1800])  # in the middle of the first image
    outcome = mine.run("00000", "00003")
    assert list(outcome.failed_shards) == ["00000", "00002"]
    assert outcome.error.startswith("2 of 4 shards failed; the others are committed.")
    for path in (paths[0], paths[2]):
        assert f"file://{path.with_suffix('')}" in outcome.error
    assert [event.partition for event in mine.events()] == ["00001", "00003"]
    assert mine.states() == {
        "00000": State.FAILED, "00001": State.DONE, "00002": State.FAILED, "00003": State.DONE,
    }  # fmt: skip
    assert totals(mine)["num_shards"] == 2
    assert not mine.path("00002", "image_failures").exists()

    shards(tmp_path, 4)  # mended: the two are embedded, the others taken over
    assert mine.run("00000", "00000").error == ""
    assert mine.run("00002", "00002").error == ""
    assert totals(mine)["num_shards"] == 4


def test_an_output_that_fails_stops_the_run_and_keeps_what_is_committed(
    tmp_path: Path, project: NewProject
) -> None:
    paths = shards(tmp_path, 3)
    table = pq.read_table(paths[1])
    noise = pa.array([os.urandom(1 << 19) for _ in range(table.num_rows)])
    pq.write_table(table.append_column("noise", noise), paths[1])
    mine = project()
    mine.register()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        outcome = mine.run("00000", "00002")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"Cannot write file://{mine.path('00001')}" in outcome.error
    assert not outcome.failed_shards
    assert "00000" in {event.partition for event in mine.events()}
    assert mine.table("00000").num_rows == 6
    assert not mine.path("00001").exists()
    committed = list(mine.path("00000").parent.iterdir())  # the third may have been written meanwhile
    assert not list((tmp_path / "out" / ".staging").iterdir())
    assert totals(mine)["num_shards"] == len(committed), (
        "metadata.json is of what is committed, however a run ends"
    )


def test_a_model_that_cannot_be_had_stops_the_run(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 1)
    mine = project(model="no-such-model")
    mine.register()
    assert mine.run("00000").error.startswith("There is no model ")
    assert "no-such-model" in mine.run("00000").error
    assert mine.events() == []


def test_a_range_that_ends_before_it_starts_is_an_error(tmp_path: Path, project: NewProject) -> None:
    shards(tmp_path, 2)
    mine = project()
    mine.register()
    assert "no partitions" in mine.run("00001", "00000").error
    assert mine.events() == []


def test_a_caption_that_is_not_utf8_is_null_and_its_image_is_embedded(
    tmp_path: Path, project: NewProject
) -> None:
    paths = shards(tmp_path, 2)
    table = pq.read_table(paths[0])
    captions = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary())
    wrong = pa.Array.from_buffers(pa.string(), len(captions), captions.buffers())
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", wrong), paths[0])
    mine = project()
    mine.register()
    outcome = mine.run("00000", "00001")
    assert (outcome.error, outcome.failed_shards) == ("", {})
    embedded = mine.table("00000")
    assert embedded.num_rows > 0
    assert embedded["caption"].null_count == embedded.num_rows


def test_without_settings_the_run_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path, 1)
    for folders, name in (
        ((tmp_path / "in", ""), "BORING_OUTPUT_DIR"),
        (("", tmp_path / "out"), "BORING_INPUT_DIR"),
    ):
        mine = Project(tmp_path / "home", monkeypatch, *folders)
        mine.register("00000")
        assert f"Set {name}" in mine.run("00000").error


def test_events_are_there_before_the_run_ends(tmp_path: Path, project: NewProject) -> None:
    """Each shard's event is stored when it is committed: a run that dies later keeps it."""
    shards(tmp_path, 3)
    mine = project()
    mine.register()
    mine.run("00000", "00002")
    run = mine.instance.get_runs()[0]
    kinds = [
        entry.dagster_event.event_type
        for entry in mine.instance.all_logs(run.run_id)
        if entry.dagster_event is not None
    ]
    assert kinds.count(dg.DagsterEventType.ASSET_MATERIALIZATION) == 3, "and none is repeated at the end"
    last = max(i for i, kind in enumerate(kinds) if kind is dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert last < kinds.index(dg.DagsterEventType.STEP_SUCCESS)
