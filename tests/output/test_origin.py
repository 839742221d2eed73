"""An output belongs to the input that it was made from, and is never an input itself."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from boring_assets.definitions import build_definitions
from boring_assets.errors import SettingsError, StorageError
from boring_assets.output.origin import check_input, claim, origin_of, root_of
from boring_assets.storage.root import open_root
from partitions.discovery import discover
from partitions.own_files import OUTPUT_MARKER
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.assets.project import Project, finished_shard
from tests.command_line import CommandLine
from tests.seaweed import Seaweed

FACTS = {"model": "m", "weights_digest": "d", "dim": 8}


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """Two inputs with the same shard names, and an output of the first."""
    cli = CommandLine(tmp_path)
    cli.sample_data("a", shards=2, samples=4)
    cli.sample_data("b", "--seed", 5, shards=2, samples=4)
    cli("embed", tmp_path / "a", tmp_path / "out")
    return cli


def test_another_input_is_refused_before_any_work(cli: CommandLine, tmp_path: Path) -> None:
    before = cli.stamps(tmp_path / "out")
    for command in (
        ("embed", tmp_path / "b", tmp_path / "out"),
        ("embed", tmp_path / "b", tmp_path / "out", "--redo"),
        ("register", "--input", tmp_path / "b", "--output", tmp_path / "out"),
        ("status", "--input", tmp_path / "b", "--output", tmp_path / "out"),
    ):
        said = cli(*command, code=1).stderr
        assert f"{tmp_path}/out was embedded from {tmp_path}/a, not from {tmp_path}/b" in said
        assert "boring-assets set-input" in said
        home = {"DAGSTER_HOME": str(tmp_path / "another home")}
        assert cli(*command, code=1, **home).stderr == said
    assert cli.stamps(tmp_path / "out") == before


def test_another_input_is_refused_by_dagster(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cli.stamps(tmp_path / "out")
    project = Project(tmp_path / "dagster", monkeypatch, tmp_path / "b", tmp_path / "out", quiet_seconds=0)
    keys = project.register()
    assert "was embedded from" in project.run(keys[0], keys[-1]).error
    resources = {
        "source": ShardSource.from_settings(project.settings),
        "embeddings": EmbeddingsIOManager.from_settings(project.settings),
    }
    sensor = build_definitions(project.settings).resolve_sensor_def("new_shards")
    context = dg.build_sensor_context(instance=project.instance, resources=resources)
    with pytest.raises(Exception, match="was embedded from"):
        sensor.evaluate_tick(context)
    assert cli.stamps(tmp_path / "out") == before


def test_another_spelling_is_the_same_input(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for spelling in ("a", "./a/", f"{tmp_path}/b/../a", f"file://{tmp_path}/a/", "link"):
        assert "Nothing to do" in cli("embed", spelling, "out").stdout, spelling


def test_s3_has_several_spellings_and_one_winner(s3_env: Seaweed) -> None:
    bucket = s3_env.new_prefix()
    output = open_root(f"{bucket}/out")
    claim(output, open_root(f"{bucket}/in"))
    for spelling in (f"{bucket}/in/", f"{bucket}/in".replace("s3://", "s3a://")):
        check_input(output, open_root(spelling))
    with pytest.raises(SettingsError, match=rf"{bucket}/in, not from {bucket}/in2"):
        claim(output, open_root(f"{bucket}/in2"))

    def begin(number: int) -> int:
        try:
            claim(open_root(f"{bucket}/new"), open_root(f"{bucket}/{number}"))
        except SettingsError:
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(begin, range(4))) == 1


def test_a_moved_input_is_reported_once(cli: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "a", tmp_path / "moved", copy_function=shutil.copy2)
    shutil.rmtree(tmp_path / "a")
    assert "set-input" in cli("embed", tmp_path / "moved", tmp_path / "out", code=1).stderr
    said = cli("set-input", tmp_path / "out", tmp_path / "moved").stdout
    assert (
        said
        == f"The input of file://{tmp_path}/out is file://{tmp_path}/moved now; it was file://{tmp_path}/a.\n"
    )
    assert "Nothing to do: 2 shards" in cli("embed", tmp_path / "moved", tmp_path / "out").stdout
    assert cli("verify", tmp_path / "out", "--input", tmp_path / "moved").stdout.endswith("all sound.\n")
    cli("embed", tmp_path / "b", tmp_path / "out", code=1)


def test_an_output_of_an_earlier_version_belongs_to_what_its_files_say(
    cli: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "out" / OUTPUT_MARKER).unlink()
    assert "not from" in cli("embed", tmp_path / "b", tmp_path / "out", code=1).stderr
    assert "Nothing to do" in cli("embed", tmp_path / "a", tmp_path / "out").stdout
    assert json.loads((tmp_path / "out" / OUTPUT_MARKER).read_text())["input"] == f"file://{tmp_path}/a"


def test_an_output_with_two_inputs_accepts_both(tmp_path: Path) -> None:
    manager = EmbeddingsIOManager(output_dir=str(tmp_path / "out"))
    for key, root in (("x", "/in"), ("y/z", "/other")):
        shard = finished_shard(key)
        object.__setattr__(shard.shard, "uri", f"file://{root}/{key}.parquet")
        manager.commit(shard, FACTS)
    output = manager.root()
    assert origin_of(output).inputs == ["file:///in", "file:///other"]
    with pytest.raises(SettingsError, match="was embedded from file:///in"):
        check_input(output, open_root("/third"))
    claim(output, open_root("/other"))
    with pytest.raises(SettingsError, match="was embedded from file:///other"):
        check_input(output, open_root("/in"))


def test_the_input_of_a_shard_is_what_lies_before_its_key() -> None:
    assert root_of("s3://b/in/part/0.parquet", "part/0") == "s3://b/in"
    assert root_of("s3://b/0.tar", "0") == "s3://b"
    assert root_of("file:///in/a.tfrecord-00000-of-00002", "a.tfrecord-00000-of-00002") == "file:///in"
    assert root_of("file:///in/a.parquet", "b") is None


@pytest.mark.parametrize("place", ["in", "in/out", "in/deep/er/out"])
def test_an_output_below_its_input_is_no_input(tmp_path: Path, place: str) -> None:
    cli = CommandLine(tmp_path)
    cli.sample_data("in", shards=3, samples=4)
    cli("embed", tmp_path / "in", tmp_path / place)
    cli("clip-scores", "--output", tmp_path / place)
    for _ in range(2):
        assert "Nothing to do: 3 shards" in cli("embed", tmp_path / "in", tmp_path / place).stdout
    cli("export", tmp_path / place, tmp_path / "in" / "export", "--format", "clip-retrieval")
    (tmp_path / place / OUTPUT_MARKER).unlink()  # as earlier versions left it
    assert len(discover(open_root(str(tmp_path / "in")), quiet_seconds=0).shards) == 3
    assert "Nothing to do: 3 shards" in cli("embed", tmp_path / "in", tmp_path / place).stdout


def test_an_output_is_no_input(cli: CommandLine, tmp_path: Path) -> None:
    for place in ("out/image_embeddings", "out/image_failures"):
        assert (
            "is an output of boring_assets" in cli("embed", tmp_path / place, tmp_path / "c", code=1).stderr
        )
    said = cli("embed", tmp_path / "out", tmp_path / "c", code=1).stderr
    assert "outputs or exports of boring_assets" in said
    with pytest.raises(StorageError, match="is an output"):
        discover(open_root(str(tmp_path / "out" / "image_embeddings")), quiet_seconds=0)


def test_folders_with_names_of_an_output_are_input(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path)
    for name in ("image_embeddings", "export", "clip_scores"):
        cli.sample_data(f"in/{name}", shards=1, samples=4)
    (tmp_path / "in/export/00000.parquet").rename(tmp_path / "in/near_duplicates.parquet")
    keys = [shard.key for shard in discover(open_root(str(tmp_path / "in")), quiet_seconds=0).shards]
    assert keys == ["clip_scores/00000", "image_embeddings/00000", "near_duplicates"]
    cli("embed", tmp_path / "in", tmp_path / "out", "--quiet-seconds", 0)
    assert pq.read_metadata(tmp_path / "out/image_embeddings/image_embeddings/00000.parquet").num_rows == 4
