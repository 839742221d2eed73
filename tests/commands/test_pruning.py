"""`boring-assets prune`, and images that must never be there."""

import hashlib
import json
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.commands.pruning import _is_refused
from boring_assets.datasets import ASSET_KEY
from boring_assets.definitions import build_definitions
from boring_assets.settings import Settings
from boring_assets.storage import files
from boring_assets.storage.root import open_root
from partitions.discovery import Discovery
from tests.assets.project import Project, metadata_of, outdated
from tests.command_line import CommandLine
from tests.seaweed import Seaweed

KINDS = ("image_embeddings", "image_failures")


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    s3: Seaweed | None = request.getfixturevalue("s3_env") if request.param == "s3" else None
    return s3.new_prefix() if s3 else str(tmp_path / "out")


def read(output: str, path: str) -> bytes:
    root = open_root(output)
    return bytes(root.fs.cat_file(f"{root.path}/{path}"))


def table(output: str, key: str, kind: str = KINDS[0]) -> pa.Table:
    return pq.read_table(pa.BufferReader(read(output, f"{kind}/{key}.parquet")))


def partitions(output: str) -> dict[str, list[str]]:
    root = open_root(output)
    return {kind: sorted(Path(path).stem for path in root.fs.find(f"{root.path}/{kind}")) for kind in KINDS}


def status(cli: CommandLine, *places: object) -> dict[str, str]:
    found: dict[str, str] = json.loads(cli("status", *places, "--json").stdout)["shards"]
    return found


def test_prune_removes_shards_that_were_deleted_from_the_input(cli: CommandLine, output: str) -> None:
    source = cli.sample_data("in", "--broken", 1, shards=3)
    cli("embed", source, output)
    for path in source.glob("00001*"):
        path.unlink()
    places = ("--input", source, "--output", output)
    said = cli("prune", *places, code=4).stdout
    assert said == "1 shard left the input:\n  00001\nNothing was changed: add --yes to remove this.\n"
    assert partitions(output) == {kind: ["00000", "00001", "00002"] for kind in KINDS}
    assert cli("prune", *places, "--yes").stdout.endswith("1 shard removed.\n")
    assert partitions(output) == {kind: ["00000", "00002"] for kind in KINDS}
    assert status(cli, *places) == {"00000": "done", "00002": "done"}
    assert json.loads(read(output, "metadata.json"))["num_shards"] == 2
    cli("verify", output, "--input", source)
    assert cli("prune", *places).stdout == "Nothing to remove.\n"


def test_a_wrong_or_empty_input_removes_nothing(cli: CommandLine) -> None:
    source, out = cli.sample_data("in"), cli.folder / "out"
    cli("embed", source, out)
    stamps = cli.stamps(out)
    other = cli.sample_data("other", "--first-shard", 7)
    assert "was embedded from" in cli("prune", "--input", other, "--output", out, "--yes", code=1).output
    assert "No input is set" not in cli("prune", "--input", source, "--output", out).output
    for path in source.iterdir():
        path.unlink()
    said = cli("prune", "--input", source, "--output", out, "--yes", code=1).output
    assert "None of the 2 shards" in said
    assert cli.stamps(out) == stamps
    source.rmdir()
    cli("prune", "--input", source, "--output", out, "--yes", "--all", code=1)
    assert cli.stamps(out) == stamps, "an input that is not there is no empty one"
    source.mkdir()
    cli("prune", "--input", source, "--output", out, "--yes", "--all")
    assert cli.stamps(out) == {}
    assert json.loads((out / "metadata.json").read_text())["num_samples"] == 0


def test_shards_that_cannot_be_read_are_not_pruned() -> None:
    found = Discovery([], [], {"/in/locked": "no permission", "/in/b.tar": "has the same name"})
    assert _is_refused("/in/locked/00000", found)
    assert _is_refused("/in/b", found)
    assert not _is_refused("/in/locked-too/00000", found)
    assert not _is_refused("/in/c", found)


def write_list(source: Path, to: str) -> tuple[list[str], str]:
    """A list of one key, one URL and one image's SHA-256 of the shard 00000; gives the three keys as well."""
    rows = [row for row in pq.read_table(source / "00000.parquet").to_pylist() if row["jpg"]][1::2][:3]
    digest = hashlib.sha256(rows[2]["jpg"]).hexdigest()
    text = f"# asked for on Monday\n{rows[0]['key']}\n{rows[1]['url']}\n{digest}\n"
    root = open_root(to)
    root.fs.pipe_file(root.path, text.encode())
    return [row["key"] for row in rows], to


def test_prune_removes_excluded_images(cli: CommandLine, output: str) -> None:
    source = cli.sample_data("in", "--broken", 1)
    for path in source.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop("sha256"), path)
    keys, listed = write_list(source, f"{output}-list.txt")
    cli("embed", source, output)
    places = ("--input", source, "--output", output)
    before = table(output, "00000")
    assert set(keys) < set(before["key"].to_pylist())
    said = cli("prune", *places, "--exclude", listed, code=4).stdout
    assert "2 images of 1 shard excluded:\n  00000  row " in said
    assert "its key is in the list of excluded images" in said
    assert "--read-images reads the images" in said
    assert table(output, "00000").equals(before)
    said = cli("prune", *places, "--exclude", listed, "--read-images", "--yes").stdout
    assert said.endswith("3 images removed.\n")
    cli("verify", output, "--input", source)
    assert not set(keys) & set(table(output, "00000")["key"].to_pylist())
    assert status(cli, *places) == {"00000": "done", "00001": "done"}
    settings = Settings(input_dir=str(source), output_dir=output, model="boring-tiny", precision="fp32")
    with dg.DagsterInstance.from_config(cli.env["DAGSTER_HOME"]) as instance:
        for key in ("00000", "00001"):
            assert outdated(instance, build_definitions(settings), ASSET_KEY, key) == []
    again = str(cli.folder / "again")
    cli("embed", source, again, BORING_EXCLUDE=listed, DAGSTER_HOME=str(cli.folder / "other-home"))
    for key in ("00000", "00001"):
        assert table(output, key).drop("embedding").equals(table(again, key).drop("embedding"))
        assert table(output, key, KINDS[1]).equals(table(again, key, KINDS[1])), "as if never embedded"
    assert table(again, "00000", KINDS[1])["reason"].to_pylist().count("excluded") == 3
    said = cli("retry", *places, "--reason", "excluded", BORING_EXCLUDE=listed).stdout
    assert said == "3 failed images of 1 shard retried: 0 embedded now, 3 failed again.\n"


def test_the_index_and_the_near_duplicates_follow(cli: CommandLine) -> None:
    pytest.importorskip("lancedb")
    source, output = cli.sample_data("in"), str(cli.folder / "out")
    cli("embed", source, output)
    cli("near-duplicates", "--output", output, "--input", source)
    (excluded, *_), listed = write_list(source, str(cli.folder / "list"))
    for path in source.glob("00001*"):
        path.unlink()
    said = cli("prune", "--input", source, "--output", output, "--exclude", listed, "--yes").stdout
    assert said.endswith("embedding_index is up to date.\nnear_duplicates.parquet is up to date.\n")
    found = cli("search", "a circle", "--output", output, "--json", "--no-update", "--limit", 100).stdout
    hits = json.loads(found)
    assert {hit["partition"] for hit in hits} == {"00000"}
    assert len(hits) == 5
    assert excluded not in {hit["key"] for hit in hits}
    near = pq.read_table(Path(output) / "near_duplicates.parquet")
    assert set(near["partition"].to_pylist()) <= {"00000"}
    assert excluded not in near["key"].to_pylist()


def test_a_killed_removal_is_finished_by_the_next(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = cli.sample_data("in"), str(cli.folder / "out")
    cli("embed", source, output)
    keys, listed = write_list(source, str(cli.folder / "list"))
    places = ("--output", output, "--exclude", listed, "--yes")
    write = files.write_bytes

    def killed(root: object, path: str, *rest: object, **more: str) -> None:
        if path.startswith("image_embeddings"):
            raise MemoryError("killed here")
        write(root, path, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("boring_assets.output.commit.write_bytes", killed)
        with pytest.raises(MemoryError, match="killed here"):
            cli("prune", *places)
    assert set(keys) < set(table(output, "00000")["key"].to_pylist())
    assert "3 images removed." in cli("prune", *places).stdout
    cli("verify", output, "--input", source)
    assert not set(keys) & set(table(output, "00000")["key"].to_pylist())


def test_a_run_does_not_embed_excluded_images(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cli.sample_data("in")
    _, listed = write_list(source, str(cli.folder / "list"))
    project = Project(cli.folder / "home", monkeypatch, source, cli.folder / "out", exclude=listed)
    project.register()
    assert project.run_anew("00000", "00001").success
    event = metadata_of(project.events()[0])
    assert (event["embedded"], event["failed"]) == (5, 3)
    assert event["failed_by_reason"] == {"excluded": 3}
    missing = Project(cli.folder / "home", monkeypatch, source, cli.folder / "out", exclude=f"{listed}-not")
    result = missing.run_anew("00000")
    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "list of excluded images (BORING_EXCLUDE)" in str(failure.step_failure_data.user_failure_data)
