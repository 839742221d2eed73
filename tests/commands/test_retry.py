"""`boring-assets retry` and runs with its tag: failed images alone, merged into what is committed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.storage import files
from boring_assets.storage.root import open_root
from boring_assets.tags import RETRY_TAG
from tests.assets.project import Project, metadata_of
from tests.command_line import CommandLine
from tests.engine.kinds import jpeg
from tests.engine.shards import assert_same
from tests.seaweed import Seaweed

ROWS = 6
MISSING = (1, 4)


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def write_urls(folder: Path, shards: int = 2) -> Path:
    """Shards whose URLs are files below the input; of each, two files are not there."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(shards):
        names = [f"pictures/{number}-{row}.jpg" for row in range(ROWS)]
        for row, name in enumerate(names):
            if row not in MISSING:
                (folder / name).write_bytes(jpeg(10 * number + row))
        table = pa.table({"key": [f"{number}-{row}" for row in range(ROWS)],
                          "url": [str(folder / name) for name in names],
                          "caption": [f"picture {row}" for row in range(ROWS)],
                          "width": list(range(ROWS))})  # fmt: skip
        pq.write_table(table, folder / f"{number:05}.parquet")
        (folder / f"{number:05}_stats.json").write_text("{}")
    return folder


def back_again(folder: Path, number: int, row: int) -> None:
    (folder / f"pictures/{number}-{row}.jpg").write_bytes(jpeg(10 * number + row))


def read(output: object, key: str, kind: str = "image_embeddings") -> pa.Table:
    root = open_root(str(output))
    return pq.read_table(pa.BufferReader(root.fs.cat_file(f"{root.path}/{kind}/{key}.parquet")))


def assert_as_if_embedded_at_once(cli: CommandLine, source: Path, output: object) -> None:
    """Compares an output with one that is made now; the vectors differ by their last bits."""
    whole = cli.folder / "whole"
    cli("embed", source, whole, DAGSTER_HOME=str(cli.folder / "home-of-whole"))
    for path in sorted((whole / "image_embeddings").iterdir()):
        got, wanted = read(output, path.stem), read(whole, path.stem)
        vectors = [table["embedding"].combine_chunks().flatten().to_numpy() for table in (got, wanted)]
        assert_same(*vectors)
        assert got.drop("embedding").equals(wanted.drop("embedding"))
        assert read(output, path.stem, "image_failures").equals(read(whole, path.stem, "image_failures"))
    cli("verify", output, "--input", source)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_images_that_are_back_are_embedded(
    cli: CommandLine, place: str, request: pytest.FixtureRequest
) -> None:
    source = write_urls(cli.folder / "in", 3)
    s3: Seaweed | None = request.getfixturevalue("s3_env") if place == "s3" else None
    output = s3.new_prefix() if s3 else str(cli.folder / "out")
    cli("embed", source, output)
    before = open_root(output)
    untouched = before.fs.cat_file(f"{before.path}/image_embeddings/00002.parquet")
    places = ("--input", source, "--output", output)
    back_again(source, 0, 1)
    back_again(source, 1, 4)
    said = cli("retry", *places, "--shard", "00000", "--shard", "00001").stdout
    assert said == "4 failed images of 2 shards retried: 2 embedded now, 2 failed again.\n"
    assert read(output, "00000")["row"].to_pylist() == [0, 1, 2, 3, 5]
    assert read(output, "00000", "image_failures").select(["row", "reason"]).to_pylist() == [
        {"row": 4, "reason": "fetch_error"}
    ]
    assert before.fs.cat_file(f"{before.path}/image_embeddings/00002.parquet") == untouched
    assert_as_if_embedded_at_once(cli, source, output)
    assert "Nothing to do: 3 shards" in cli("embed", source, output).stdout
    assert "Nothing to retry" in cli("retry", *places, "--reason", "decode_error").stdout


def test_a_larger_limit_is_retried_for_one_reason_of_a_lone_tar(cli: CommandLine) -> None:
    source = cli.sample_data("in", "--format", "webdataset")
    for path in source.glob("*.parquet"):
        path.unlink()
    places = (source, cli.folder / "out")
    cli("embed", *places, BORING_MAX_IMAGE_PIXELS="100")
    (last,) = {path.stem for path in source.glob("*.tar")} - {"00000"}
    reasons = read(places[1], last, "image_failures")["reason"].to_pylist()
    assert reasons.count("too_large") == 8
    said = cli("retry", "--input", places[0], "--output", places[1], "--reason", "too_large").stdout
    assert said == "16 failed images of 2 shards retried: 16 embedded now, 0 failed again.\n"
    assert_as_if_embedded_at_once(cli, *places)


def test_another_model_is_refused_and_a_changed_shard_is_left_to_embed(cli: CommandLine) -> None:
    source = write_urls(cli.folder / "in", 1)
    places = ("--input", source, "--output", cli.folder / "out")
    cli("embed", source, cli.folder / "out")
    before = cli.stamps(cli.folder / "out")
    back_again(source, 0, 1)
    said = cli("retry", *places, "--precision", "bf16", code=1).output
    assert "A retry needs the settings that they were embedded with" in said
    assert cli.stamps(cli.folder / "out") == before
    assert "does not hold" in cli("retry", *places, "--shard", "00007", code=1).output
    table = pq.read_table(source / "00000.parquet")
    pq.write_table(table.slice(0, 5), source / "00000.parquet")
    said = cli("retry", *places).stdout
    assert said.startswith(
        "Skipped, changed since: 1 shard (00000). Run boring-assets embed.\nNothing to retry"
    )
    assert cli.stamps(cli.folder / "out") == before


@pytest.mark.parametrize("killed_at", ["image_failures", "image_embeddings"])
def test_a_killed_retry_loses_nothing(
    cli: CommandLine, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_urls(cli.folder / "in", 1)
    output = cli.folder / "out"
    places = ("--input", source, "--output", output)
    cli("embed", source, output)
    before = read(output, "00000")
    back_again(source, 0, 1)
    write = files.write_bytes

    def killed(root: object, path: str, *rest: object, **more: str) -> None:
        if path.startswith(killed_at):
            raise MemoryError("killed here")
        write(root, path, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("boring_assets.output.commit.write_bytes", killed)
        assert "killed here" in cli("retry", *places, code=1).output
    assert read(output, "00000").equals(before)
    assert "2 failed images of 1 shard retried: 1 embedded now" in cli("retry", *places).stdout
    assert_as_if_embedded_at_once(cli, source, output)


def test_a_backfill_with_the_tag_retries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_urls(tmp_path / "in", 3)
    project = Project(tmp_path / "home", monkeypatch, source, tmp_path / "out")
    project.register()
    assert project.run("00000", "00001").error == ""
    back_again(source, 0, 1)
    for row in MISSING:
        back_again(source, 2, row)
    result = project.run_anew("00000", "00002", {RETRY_TAG: "fetch_error, decode_error"})
    assert result.success
    events = {str(event.partition): metadata_of(event) for event in project.events()[2:]}
    wanted = ("rows", "embedded", "failed", "retried", "recovered")
    assert [events["00000"].get(name) for name in wanted] == [6, 5, 1, 2, 1]
    assert [events["00001"].get(name) for name in wanted] == [6, 4, 2, 2, 0]
    assert [events["00002"].get(name) for name in wanted] == [6, 6, 0, None, None], "was not committed: whole"
    assert set(project.states().values()) == {"done"}
    assert project.run_anew("00000", tags={RETRY_TAG: "too_large"}).success
    assert metadata_of(project.events()[-1])["adopted"], "nothing to retry: reported as it is"
    refused = project.run_anew("00000", tags={RETRY_TAG: "typo"})
    assert not refused.success
    failure = next(event for event in refused.all_events if event.is_step_failure)
    assert "names typo. Expected: `true`" in str(failure.step_failure_data.user_failure_data)
