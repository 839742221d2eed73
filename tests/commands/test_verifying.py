"""`boring-assets verify`: every planted fault is found, nothing else is, and `--repair` mends it."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from boring_assets.commands.inspection import check_output
from boring_assets.commands.verifying import repair_all
from boring_assets.output.schema import METADATA_KEY, read_facts
from boring_assets.output.verify import check_files
from boring_assets.settings import Settings
from boring_assets.storage.root import open_root
from tests.command_line import CommandLine
from tests.planted import (
    FAULTS,
    KEY,
    Output,
    a_nan,
    flip,
    same,
    vectors,
)
from tests.seaweed import Seaweed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    cli = CommandLine(folder)
    cli.sample_data("in", "--broken", 2, shards=4, samples=10)
    cli("embed", folder / "in", folder / "out")
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Iterator[Output]:
    """The same output for each test, in place: the input's versions hold its times."""
    shutil.copytree(made, tmp_path / "kept", copy_function=shutil.copy2)
    yield Output(CommandLine(made), made)
    for name in ("in", "out", "home"):
        shutil.rmtree(made / name, ignore_errors=True)
        shutil.copytree(tmp_path / "kept" / name, made / name, copy_function=shutil.copy2)


@pytest.mark.parametrize("fault", FAULTS)
def test_exactly_the_damage_is_found(output: Output, fault: str) -> None:
    plant, kind = FAULTS[fault]
    plant(output)
    report = output.verify(code=4)
    assert [(one["partition"], one["kind"]) for one in report["findings"]] == [(KEY, kind)], report
    assert report["redo"] == [KEY]
    if kind != "stale":
        assert {(KEY, kind)} <= set(output.found(input=False, code=4)), "without the input as well"


def test_an_undamaged_output_verifies(output: Output) -> None:
    assert output.verify() == {"partitions": 4, "redo": [], "findings": []}
    said = output.cli("verify", output.out).stdout
    assert said == "4 partitions checked: all sound. The input was not checked: give --input.\n"


def test_all_faults_are_repaired_at_once_and_nothing_else_is_done(output: Output) -> None:
    before = output.cli.stamps(output.out)
    flip(output)
    output.path("00002").unlink()
    (output.out / "metadata.json").write_text('{"num_samples": 7}')
    assert output.found(code=4) == [(KEY, "unreadable"), ("00002", "missing"), (None, "stray")]
    said = output.cli("verify", output.out, "--input", output.folder / "in", "--repair").stdout
    assert "error  unreadable       00001: " in said
    assert "4 partitions" not in said.partition("Shards")[0]
    assert "Shards    2 embedded\n" in said
    assert said.endswith("Repaired: everything is sound now.\n")
    assert output.verify()["findings"] == []
    after = output.cli.stamps(output.out)
    assert {key for key in after if after[key] != before[key]} == {KEY, "00002"}
    assert "Nothing to do: 4 shards" in output.cli("embed", output.folder / "in", output.out).stdout


@pytest.mark.parametrize("fault", ["truncated", "a row twice", "other weights", "a changed source"])
def test_each_kind_of_damage_is_repaired(output: Output, fault: str) -> None:
    FAULTS[fault][0](output)
    output.verify("--repair")
    assert output.verify()["findings"] == []


def test_an_interrupted_repair_is_finished_by_embed(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    output.rewrite(vectors(a_nan))
    monkeypatch.setattr("boring_assets.commands.embedding.run_shards", _interrupt)
    for name, value in output.cli.env.items():
        monkeypatch.setenv(name, value)
    settings = Settings(input_dir=str(output.folder / "in"), output_dir=str(output.out))
    report = check_output(settings)
    with pytest.raises(KeyboardInterrupt):
        repair_all(settings, report, Console())
    monkeypatch.undo()
    assert "Shards    1 embedded" in output.cli("embed", output.folder / "in", output.out).stdout
    assert output.verify()["findings"] == []


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_partitions_of_another_shard_or_input_are_found(output: Output) -> None:
    for name in ("image_embeddings", "image_failures"):
        shutil.copy2(output.path("00003", name), output.path("00000", name))
    output.rewrite(same, source_uri=f"file:///elsewhere/{KEY}.parquet")
    expected = [("00000", "other_shard"), (KEY, "other_input")]
    assert output.found(code=4) == output.found(input=False, code=4) == expected
    report = output.verify("--input", output.folder, input=False, code=4)
    assert "other_input" in {one["kind"] for one in report["findings"] if one["partition"] is None}
    output.verify("--repair")
    assert output.verify()["findings"] == []


def test_wrong_totals_are_counted_again(output: Output) -> None:
    totals = output.out / "metadata.json"
    for wrong in ('{"num_samples": 7}', "[]", "", None):
        totals.unlink() if wrong is None else totals.write_text(wrong)
        assert output.found(code=4) == [(None, "totals")]
        output.verify("--repair")
        assert json.loads(totals.read_bytes())["num_samples"] == 32


def test_stray_files_are_reported_and_kept(output: Output) -> None:
    strays = [".staging/0123", "image_embeddings/notes.txt", "image_failures/00009.parquet", "readme.txt"]
    for name in strays:
        path = output.out / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"what")
    for name in (
        ".measures.parquet",
        "near_duplicates.parquet",
    ):  # no strays
        (output.out / name).write_bytes(b"what")
    for name in ("image_embeddings", "image_failures"):
        shutil.copy2(output.path("00003", name), output.path("00007", name))
    table = pq.read_table(output.path("00007"))
    facts = read_facts(table.schema.metadata) | {"source_uri": f"file://{output.folder}/in/00007.parquet"}
    pq.write_table(
        table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()}), output.path("00007")
    )
    (output.folder / "in" / "00000.parquet").unlink()
    (output.out / "metadata.json").unlink()
    output.cli("embed", output.folder / "in", output.out)
    report = output.verify("--repair")  # the totals were wrong: they are right then
    notes = [one["text"] for one in report["findings"] if one["kind"] == "stray"]
    assert [any(name in text for text in notes) for name in strays] == [True] * 4
    assert len(notes) == 4
    gone = [one["partition"] for one in report["findings"] if one["kind"] == "gone"]
    assert gone == ["00000", "00007"]
    assert {one["severity"] for one in report["findings"] if one["kind"] in ("gone", "stray")} == {"note"}
    for name in strays:
        assert (output.out / name).read_bytes() == b"what"
    assert output.path("00000").exists()


def test_a_damaged_partition_of_a_shard_that_is_gone_is_kept(output: Output) -> None:
    output.rewrite(vectors(a_nan))
    for path in (output.folder / "in").glob(f"{KEY}*"):
        path.unlink()
    before = output.path().read_bytes()
    said = output.cli("verify", output.out, "--input", output.folder / "in", "--repair", code=4).stdout
    assert "No longer in the input, so they cannot be embedded again: 00001." in said
    assert output.path().read_bytes() == before


def test_repair_with_other_settings_is_refused_before_anything_is_removed(output: Output) -> None:
    output.rewrite(vectors(a_nan))
    before = output.path().read_bytes()
    said = output.cli(
        "verify", output.out, "--input", output.folder / "in", "--precision", "bf16", "--repair", code=1
    ).stderr
    assert (
        "was embedded with the settings boring-tiny--fp32-float32, not with boring-tiny--bf16-float32" in said
    )
    assert "BORING_PRECISION (--precision)" in said
    said = output.cli("verify", output.out, "--repair", code=1).stderr
    assert "Set BORING_INPUT_DIR (--input)" in said
    assert output.path().read_bytes() == before


def test_no_flip_in_the_pages_changes_what_is_read_unseen(output: Output) -> None:
    data = output.path().read_bytes()
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    choice = random.Random(0)
    sound, found = pq.read_table(output.path()), 0
    for at in choice.sample(range(4, pages), 60):
        damaged = bytearray(data)
        damaged[at] ^= 1 << choice.randrange(8)
        output.path().write_bytes(bytes(damaged))
        paths = (f"{kind}/{KEY}.parquet" for kind in ("image_embeddings", "image_failures"))
        if check_files(open_root(str(output.out)), *paths).findings:
            found += 1
        else:  # statistics of a page say nothing of its rows
            assert pq.read_table(output.path()).equals(sound), at
    assert found > 30


def test_keys_that_are_repeated_in_the_source_are_no_error(output: Output) -> None:
    shard = output.folder / "in" / "00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.take([*range(table.num_rows), 0, 1, 1]), shard)
    output.cli("embed", output.folder / "in", output.out)
    assert output.verify()["findings"] == []
    facts = read_facts(pq.read_schema(output.path("00000")).metadata)
    assert facts["repeated"] == 3


def test_verify_and_repair_on_s3(made: Path, s3_env: Seaweed) -> None:
    cli, fs = CommandLine(made), s3_env.filesystem()
    out = s3_env.new_prefix()
    fs.put(f"{made}/out/", f"{out}/", recursive=True)
    assert cli("verify", out).stdout.startswith("4 partitions checked: all sound.")
    path = f"{out}/image_embeddings/{KEY}.parquet"
    data = bytearray(fs.cat_file(path))
    vectors = pq.read_table(made / "out/image_embeddings" / f"{KEY}.parquet")["embedding"].combine_chunks()
    data[data.find(vectors.flatten().to_numpy().tobytes())] ^= 1
    fs.pipe_file(path, bytes(data))
    told = json.loads(cli("verify", out, "--json", code=4).stdout)
    assert [(one["partition"], one["kind"]) for one in told["findings"]] == [(KEY, "unreadable")]
    home = {"DAGSTER_HOME": str(made / "home-s3")}
    cli("verify", out, "--input", made / "in", "--repair", **home)
    assert cli("verify", out).stdout.startswith("4 partitions checked: all sound.")
