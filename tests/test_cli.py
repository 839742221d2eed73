"""The commands as their users type them: help, wrong input, status, register, failures, sample-data."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.cli import GROUPS, main
from tests.command_line import PROGRAM, CommandLine


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


def commands() -> dict[str, click.Command]:
    context = click.Context(main)
    return {name: main.get_command(context, name) for name in main.list_commands(context)}  # type: ignore[misc]


def test_the_help_lists_every_command_in_its_group(cli: CommandLine) -> None:
    overview = cli("-h").output
    assert overview == cli("--help").output
    assert re.findall(r"^(\w+):$", overview, re.MULTILINE) == ["Options", *GROUPS]
    listed = re.findall(r"^  ([a-z][a-z-]+) {2,}[A-Z]", overview, re.MULTILINE)
    assert listed == main.list_commands(click.Context(main))
    assert "130 interrupted" in overview


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_the_help_of_a_command_explains_each_argument_and_shows_examples(cli: CommandLine, name: str) -> None:
    command, text = commands()[name], cli(name, "-h").output
    words = " ".join(text.split())
    assert not re.search(r"\\b|default: (none|any|all)\b", text)
    for one in command.params:
        if getattr(one, "hidden", False):
            continue
        assert one.help, one.name  # type: ignore[attr-defined]
        if isinstance(one, click.Option):
            assert f"{one.opts[0]} " in words
            if isinstance(one.default, int | float) and one.show_default:
                assert re.search(rf"{one.opts[0]} .*?\[default: {one.default}", words), one.name
    examples = re.findall(r"^  (boring-assets .*)$", text.partition("\nExamples:\n")[2], re.MULTILINE)
    assert examples
    for example in examples:
        _, called, *arguments = shlex.split(example)
        commands()[called].make_context(called, arguments)  # raises where the example is wrong


def test_help_is_shown_without_the_heavy_imports() -> None:
    code = """
import sys
from click.testing import CliRunner
from boring_assets.cli import GROUPS, main
def heavy(*names):
    return [name for name in names if name in sys.modules]
assert CliRunner().invoke(main, ["--help"]).exit_code == 0
print(heavy("dagster", "torch", "polars", "pyarrow", "numpy", "pydantic"))
for name in main.list_commands(None):
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
print(heavy("dagster", "torch", "polars", "pyarrow", "numpy"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_input_and_output_are_positions_and_the_earlier_flags_are_still_taken(cli: CommandLine) -> None:
    cli.sample_data("in", shards=1)
    new = cli("status", "in", "out", code=4).stdout
    assert new == cli("status", "--input", "in", "--output", "out", code=4).stdout
    assert new == cli("status", BORING_INPUT_DIR="in", BORING_OUTPUT_DIR="out", code=4).stdout
    assert "INPUT is given twice" in cli("status", "in", "out", "--input", "in", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "out"), ["/nowhere: nothing exists there", "Check the spelling"]),
        (("empty", "out"), ["no complete shards below", "/empty", "Expected: parquet files"]),
        (("file", "out"), ["/file is a file, not a folder", "Give the folder"]),
        (("in", "file"), ["/file/.boring_assets.json: a part of the path is a file", "Choose another path"]),
        (
            ("in", "file/below"),
            ["/file/below/.boring_assets.json: a part of the path is a file", "Choose another path"],
        ),
        (("", "out"), ["Set BORING_INPUT_DIR (INPUT) to the folder"]),
        (("in", "ftps3://out"), ["'ftps3', which is unknown", "s3://bucket/prefix"]),
        (("in", "out", "--batch-size", "0"), ["BORING_BATCH_SIZE (--batch-size) is '0'", "greater than 0"]),
        (("in", "out", "--batch-size", "x"), ["BORING_BATCH_SIZE (--batch-size) is 'x'", "'auto'"]),
        (("in", "out", "--max-samples", "-1"), ["BORING_MAX_SAMPLES (--max-samples) is '-1'"]),
        (("in", "out", "--num-workers", "0"), ["BORING_NUM_WORKERS (--num-workers) is '0'"]),
        (("in", "out", "--precision", "x"), ["BORING_PRECISION (--precision) is 'x'", "'fp16' or 'int8'"]),
        (("in", "out", "--device", "x"), ["BORING_DEVICE (--device) is 'x'", "cpu"]),
        (("in", "out", "--config", "no.toml"), ["BORING_CONFIG (--config) names no.toml", "TOML file"]),
        (
            ("in", "out", "--config", "bad.toml"),
            ["bad.toml: There is no setting `batch_sise`; the nearest is `batch_size`"],
        ),
    ],
    ids=lambda value: "-".join(value).strip("-") or "none" if isinstance(value, tuple) else "",
)
def test_wrong_input_is_named_with_its_fix(
    cli: CommandLine, arguments: tuple[str, ...], said: list[str]
) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    Path("bad.toml").write_text("batch_sise = 3\n")
    cli.sample_data("in", shards=1, samples=2)
    result = cli("embed", *arguments, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for part in said:
        assert part in result.stderr
    assert not cli.stamps(Path("out"))


def test_wrong_settings_leave_earlier_output_as_it_was(cli: CommandLine) -> None:
    cli.sample_data("in")
    cli("embed", "in", "out")
    before = cli.stamps(Path("out"))

    def totals() -> dict:
        return json.loads(Path("out/metadata.json").read_bytes()) | {"timestamp": ""}

    totals_before = totals()
    cli.sample_data("in", "--first-shard", 2, shards=1)
    (cli.folder / "model").mkdir()
    for options, said in (
        (("--model", "ViT-B-23"), "other settings than model ViT-B-23"),
        (("--model", "ViT-B-23", "--redo"), "Near matches: ViT-B-32"),
        (("--model", "./modle", "--redo"), "no model './modle', nor a directory of that name"),
        (("--model", "./model", "--redo"), "The model directory model has no open_clip_config.json"),
    ):
        assert said in cli("embed", "in", "out", *options, code=1).stderr
        assert cli.stamps(Path("out")) == before
        assert totals() == totals_before
    assert "Shards    1 embedded\n" in cli("embed", "in", "out").stdout
    assert {key: stamp for key, stamp in cli.stamps(Path("out")).items() if key in before} == before


def test_cuda_that_is_not_there(cli: CommandLine) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    cli.sample_data("in", shards=1, samples=2)
    said = cli("embed", "in", "out", "--device", "cuda", code=1).stderr
    assert "BORING_DEVICE (--device) is 'cuda', but this machine shows 0 CUDA devices" in said


def test_parquet_that_leads_to_no_images(cli: CommandLine) -> None:
    Path("in").mkdir()
    pq.write_table(pa.table({"[red]a": [1, 2], "b\x1b[31m": ["x", "y"]}), "in/00000.parquet")
    result = cli("embed", "in", "out", "--quiet-seconds", 0, code=3)
    assert "Shards    0 embedded, 1 failed\n" in result.stdout
    assert "in/00000.parquet leads to no images: it has the columns ['[red]a', 'b" in result.stdout
    assert "Expected a binary column" in result.stdout
    assert "\x1b" not in result.stdout
    assert "Images" not in result.stdout


def test_status_shows_the_state_of_each_shard(cli: CommandLine) -> None:
    options = ("in", "out")
    assert "BORING_INPUT_DIR (INPUT)" in cli("status", "", "out", code=1).stderr
    cli.sample_data("in", shards=1)
    assert cli("register", *options).stdout == "1 shard registered.\n"
    cli.sample_data("in", shards=7)
    assert cli("register", *options).stdout == "6 shards registered, 1 known before.\n"
    keys = "00000, 00001, 00002, 00003, 00004, ..."
    assert cli("status", *options, code=4).stdout == f"new                     7  {keys}\n"
    cli("embed", "in", "out")
    assert cli("status", *options).stdout == f"done                    7  {keys}\n"

    cli.sample_data("in", "--seed", 1, shards=1)
    Path("out/image_embeddings/00001.parquet").unlink()
    Path("in/00002.parquet").unlink()
    Path("in/00007.parquet").touch()
    said = cli("status", *options, code=4).stdout.splitlines()
    assert [line.split()[:3] for line in said] == [
        ["changed", "1", "00000"],
        ["lost", "1", "00001"],
        ["done", "4", "00003,"],
        ["gone", "1", "00002"],
        ["growing", "1", "00007"],
    ]
    assert len({line.index(line.split()[2]) for line in said}) == 1
    told = json.loads(cli("status", *options, "--json", code=4).stdout)
    assert told["counts"]["done"] == 4
    assert told["counts"]["new"] == 0
    assert told["shards"]["00000"] == "changed"

    Path("other.toml").write_text('output_dtype = "float16"\ninput_dir = "in"\noutput_dir = "out"\n')
    told = json.loads(cli("status", "--config", "other.toml", "--json", code=4).stdout)
    assert told["counts"]["other settings"] == 4
    assert "precision fp32, float16" in cli("status", "--config", "other.toml", code=4).stderr
    elsewhere = cli("status", *options, code=4, DAGSTER_HOME=str(Path("home2").absolute()))
    assert "5 new shards of this DAGSTER_HOME: embedded already" in elsewhere.stderr


def test_status_of_an_empty_input(cli: CommandLine) -> None:
    Path("in").mkdir()
    assert cli("status", "in", "out").stdout == "There are no shards.\n"


def test_failures_can_be_filtered(cli: CommandLine) -> None:
    cli.sample_data("in", "--broken", 4, shards=3)
    next_ones = cli("embed", "in", "out").stdout.partition("\nNext:\n")[2].splitlines()
    assert next_ones[0].endswith("boring-assets failures out")
    for line in next_ones:  # also where the environment is not on the PATH
        program = next(word for word in shlex.split(line) if "=" not in word)
        assert shutil.which(program) is not None, line
    lines = cli("failures", "out").stdout.splitlines()
    counts = {reason: int(count) for count, reason in map(str.split, lines[:3])}
    assert counts == {"decode_error": 6, "missing_image": 3, "not_downloaded": 3}
    assert len(lines) == 3 + 12
    assert len({re.match(r"\d+ +\w+ +", line).end() for line in lines[3:]}) == 1  # type: ignore[union-attr]

    chosen = ("--reason", "not_downloaded", "--shard", "00001", "--json")
    (row,) = map(json.loads, cli("failures", "out", *chosen).stdout.splitlines())
    assert row["reason"] == "not_downloaded"
    assert "404" in row["detail"]
    assert row["url"].startswith("https://example.com/")
    table = pq.read_table("in/00001.parquet").slice(row["row"], 1).to_pylist()[0]
    assert (table["key"], table["status"]) == (row["key"], "failed_to_download")

    both = ("--reason", "not_downloaded", "--reason", "missing_image")
    assert len(cli("failures", "out", *both).stdout.splitlines()) == 2 + 6

    lines = cli("failures", "out", "--limit", 2).stdout.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "... and 10 more; --limit 0 shows all."
    assert len(cli("failures", "out", "--limit", 0).stdout.splitlines()) == 15
    assert cli("failures", "out", "--reason", "too_large").stdout == "No failures.\n"
    assert "decode_error" in cli("failures", "out", "--reason", "typo", code=2).stderr
    assert "/none.parquet: nothing exists there" in cli("failures", "out", "--shard", "none", code=1).stderr
    assert "BORING_OUTPUT_DIR (OUTPUT)" in cli("failures", code=1).stderr


def test_a_failure_message_of_a_shard_cannot_control_the_terminal(cli: CommandLine) -> None:
    Path("in").mkdir()
    evil = "\x1b[2J\x1b]0;title\x07"
    row = {"url": f"https://example.com/{evil}", "caption": "a", "key": "1", "status": "failed_to_download"}
    table = pa.Table.from_pylist([{**row, "error_message": evil}])
    pq.write_table(table.append_column("jpg", pa.array([None], pa.binary())), "in/0.parquet")
    cli("embed", "in", "out", "--quiet-seconds", 0)
    process = subprocess.run(
        [PROGRAM, "failures", "out"], env=os.environ | cli.env, capture_output=True, check=True
    )
    assert b"not_downloaded" in process.stdout
    assert rb"\x1b[2J" in process.stdout
    assert not set(process.stdout) & (set(range(32)) - {10})


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_sample_data_of_each_format_is_embedded_by_the_next_command(cli: CommandLine, layout: str) -> None:
    sizes = ("--num-shards", 1, "--samples-per-shard", 9, "--broken", 2, "--image-size", 32)
    said = cli("sample-data", "in", *sizes, "--format", layout).stdout
    assert said == "1 shard of 9 samples in in, 2 broken in each.\n"
    assert "Images    9: 7 embedded, 2 failed\n" in cli("embed", "in", "out").stdout


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--num-shards", 0), 2, "--num-shards"),
        (("--samples-per-shard", "x"), 2, "--samples-per-shard"),
        (("--format", "tfrecord"), 2, "'webdataset', 'files', 'parquet'"),
        (("--image-size", 15), 2, "--image-size"),
        (("--seed", -1), 2, "--seed"),
        (("--samples-per-shard", 3, "--broken", 4), 1, "--broken is 4, more than --samples-per-shard 3"),
    ],
)
def test_sample_data_refuses_numbers(cli: CommandLine, options: tuple, code: int, said: str) -> None:
    assert said in cli("sample-data", "in", *options, code=code).stderr
    assert not Path("in").exists()


def test_sample_data_that_cannot_be_written(cli: CommandLine) -> None:
    Path("file").touch()
    assert "Cannot write file/below" in cli("sample-data", "file/below", code=1).stderr
