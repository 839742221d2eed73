"""Datasets as people have them, through `boring-assets embed`: on a local disk, on S3, and by a Dagster run.

The inputs are `shared/cases` (see its README.md). Everywhere rows in = embedded + failed.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.assets.project import Project
from tests.command_line import CommandLine
from tests.conftest import SHARED_DATA
from tests.seaweed import Seaweed

CASES = SHARED_DATA.parent / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"no inputs at {CASES}")


class Case(NamedTuple):
    """An input, the settings that a user gives, and what must come out: the keys, captions and failures."""

    folder: str
    settings: dict[str, str]
    keys: list[str | None]
    captions: list[str | None]
    failed: list[str] = []


SAMPLES = [f"sample{number:06d}" for number in range(5)]
NAMED = {"image_column": "photo", "key_column": "asset_id", "caption_column": "alt", "url_column": "href"}
CASE_LIST = [
    Case(
        "webdataset_two_images",
        {"image_column": "input.jpg"},
        [*SAMPLES],
        [f"caption {number:06d}" for number in range(5)],
    ),
    Case(
        "webdataset_two_images",
        {},
        [f"{sample}.{side}" for sample in SAMPLES for side in ("input", "target")],
        [f"caption {number:06d}" for number in range(5) for _ in range(2)],
    ),
    Case("dots_in_names", {}, ["plain", "22.05", "22.06", "x v1.0"], [None] * 4),
    Case("webdataset_gz", {}, [f"{number:06d}" for number in range(5)], ["c"] * 5),
    Case("column_content", {}, [None] * 5, [None] * 5),
    Case("column_content", {"image_column": "content", "key_column": "path"},
         [f"dbfs:/x/{number:06d}.jpg" for number in range(5)], [None] * 5),
    Case("two_image_columns", {}, [None] * 5, [None] * 5),
    Case("two_image_columns", {"image_column": "mask"}, [None] * 5, [None] * 5),
    Case("image_structs_order", {}, [None] * 9, [None] * 3 + ["a", "b", "c"] * 2),
    Case("base64_text", {"image_column": "image", "key_column": "id"},
         [f"{number:06d}" for number in range(5)], [None] * 5),
    Case("no_key", {}, [None] * 4, [f"t{number:06d}" for number in (0, 2, 3, 4)], ["decode_error"]),
    Case("path_only_struct", {}, [None] * 2, ["a", "b"], ["not_allowed"]),
    Case("int_keys", {}, ["0", "1", "2"], ["c0", "c1", "c2"]),
    Case("odd_captions", {}, [f"{n:09d}" for n in range(3)] * 2 + ["0", "1", "2"] + [None] * 3
         + [f"{n:09d}" for n in range(3)] * 2,
         ["a", "b", "c", "a", None, "c", "c0", "c1", "c2", "a", "c", None, "1", "2", "3", "x", "x", "x"]),
    Case("names_of_its_own", NAMED, [f"A-{n:06d}" for n in range(5)], [f"alt {n:06d}" for n in range(5)]),
]  # fmt: skip


def _rows(output: Path, kind: str) -> list[dict[str, Any]]:
    return [
        row
        for path in sorted((output / kind).rglob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]


def _check(output: Path, case: Case) -> None:
    embedded, failed = _rows(output, "image_embeddings"), _rows(output, "image_failures")
    assert [row["key"] for row in embedded] == case.keys
    assert [row["caption"] for row in embedded] == case.captions
    assert [row["reason"] for row in failed] == case.failed
    # No encoded image reaches the output.
    assert not [name for row in embedded for name, value in row.items() if isinstance(value, bytes | dict)
                and name != "meta_caption"]  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


def _options(settings: dict[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize("case", CASE_LIST, ids=lambda case: "-".join([case.folder, *case.settings.values()]))
def test_embed_takes_each_case_from_a_local_disk(cli: CommandLine, tmp_path: Path, case: Case) -> None:
    said = cli("embed", CASES / case.folder, "out", "--quiet-seconds", 0, *_options(case.settings)).output
    _check(tmp_path / "out", case)
    total = len(case.keys) + len(case.failed)
    assert f"{total}: {len(case.keys)} embedded, {len(case.failed)} failed" in said


def test_all_texts_of_a_caption_are_kept(cli: CommandLine, tmp_path: Path) -> None:
    cli("embed", CASES / "odd_captions", "out", "--quiet-seconds", 0)
    folder = tmp_path / "out" / "image_embeddings"
    assert pq.read_table(folder / "flickr30k.parquet")["meta_caption"].to_pylist() == [["a", "b"], ["c"], []]
    assert pq.read_table(folder / "struct_caption.parquet")["meta_caption"].to_pylist() == [{"raw": "x"}] * 3
    assert pq.read_table(folder / "both.parquet")["meta_text"].to_pylist() == [["a"], ["b"], ["c"]]


def test_errors_name_the_setting_and_what_there_is(cli: CommandLine, tmp_path: Path) -> None:
    said = cli(
        "embed", CASES / "names_of_its_own", "out", "--image-column", "foto", "--quiet-seconds", 0, code=3
    )
    assert "no column 'foto'" in said.output
    assert "It has: alt, asset_id, href, photo" in said.output
    said = cli("embed", CASES / "base64_text", "out2", "--quiet-seconds", 0, code=3)
    assert (
        "set BORING_IMAGE_COLUMN (--image-column)=image" in said.output
        or "BORING_IMAGE_COLUMN=image" in said.output
    )
    two = tmp_path / "two"
    two.mkdir()
    photo = pq.read_table(CASES / "names_of_its_own" / "0.parquet")["photo"]
    pq.write_table(pa.table({"left": photo, "right": photo}), two / "0.parquet")
    said = cli("embed", two, "out3", "--quiet-seconds", 0, code=3)
    assert "several columns of images: left, right" in said.output
    cli("embed", two, "out3", "--quiet-seconds", 0, "--image-column", "right")
    assert pq.read_metadata(tmp_path / "out3" / "image_embeddings" / "0.parquet").num_rows == 5


def test_another_image_column_makes_partitions_stale_and_no_column_does_not(cli: CommandLine) -> None:
    """An output with default settings stays up to date; other columns are other settings."""
    cli("embed", CASES / "two_image_columns", "out", "--quiet-seconds", 0)
    assert "Nothing to do" in cli("embed", CASES / "two_image_columns", "out", "--quiet-seconds", 0).output
    mask = ("--image-column", "mask", "--quiet-seconds", 0)
    said = cli("embed", CASES / "two_image_columns", "out", *mask, code=1).output
    assert "other settings than model boring-tiny, precision fp32, float32, image_column=mask" in said
    cli("embed", CASES / "two_image_columns", "out", *mask, "--redo")


def test_bytes_in_the_shard_win_over_a_url(cli: CommandLine, tmp_path: Path) -> None:
    table = pq.read_table(CASES / "column_content" / "part-00000.parquet")
    (tmp_path / "in").mkdir()
    urls = pa.array([f"https://example.com/{row}.jpg" for row in range(5)])
    pq.write_table(table.append_column("url", urls), tmp_path / "in" / "0.parquet")
    cli("embed", "in", "out", "--quiet-seconds", 0)
    assert pq.read_table(tmp_path / "out/image_embeddings/0.parquet")["url"].to_pylist() == urls.to_pylist()


def test_tars_beside_an_unrelated_parquet_are_shards_too(cli: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(CASES / "dots_in_names", tmp_path / "in")
    pq.write_table(pa.table({"url": ["https://example.com/a.jpg"]}), tmp_path / "in" / "metadata.parquet")
    cli("embed", "in", "out", "--quiet-seconds", 0)
    assert len(_rows(tmp_path / "out", "image_embeddings")) == 4
    assert [row["reason"] for row in _rows(tmp_path / "out", "image_failures")] == ["not_allowed"]


def test_a_compressed_tar_beside_its_parquet_is_named(cli: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(CASES / "webdataset_gz", tmp_path / "in")
    pq.write_table(
        pa.table({"key": ["000000"], "url": ["https://x.com/a.jpg"]}), tmp_path / "in" / "00000.parquet"
    )
    said = cli("embed", "in", "out", "--quiet-seconds", 0, code=3).output
    assert "compressed tar beside it" in said


def test_fresh_lone_tars_are_embedded_at_once(cli: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(CASES / "dots_in_names", tmp_path / "in", copy_function=shutil.copyfile)
    cli("embed", "in", "out")
    assert len(_rows(tmp_path / "out", "image_embeddings")) == 4


def test_an_input_without_shards_says_what_it_holds(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    said = cli("embed", "in", "out", code=1).output
    assert "boring-assets list-pictures" in said
    assert "list-pictures" in cli("register", "--input", "in", "--output", "out").output


def test_embed_takes_cases_from_s3_to_s3(cli: CommandLine, s3_env: Seaweed, tmp_path: Path) -> None:
    fs = s3_env.filesystem()
    for case in (
        CASE_LIST[0],
        CASE_LIST[3],
        CASE_LIST[-1],
        next(c for c in CASE_LIST if c.failed == ["not_allowed"]),
    ):
        prefix = s3_env.new_prefix()
        fs.put(str(CASES / case.folder) + "/", f"{prefix.removeprefix('s3://')}/in/", recursive=True)
        cli("embed", f"{prefix}/in", f"{prefix}/out", "--quiet-seconds", 0, *_options(case.settings))
        fs.get(f"{prefix.removeprefix('s3://')}/out/", str(tmp_path / case.folder) + "/", recursive=True)
        _check(tmp_path / case.folder, case)


def test_the_log_of_a_run_names_the_image_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CASES / "names_of_its_own"
    project = Project(
        tmp_path / "home", monkeypatch, folder, tmp_path / "out", quiet_seconds=0, key_column="asset_id"
    )
    project.register()
    result = project.run_anew("0")
    assert result.success
    logs = project.instance.all_logs(result.run_id)
    assert any("Images are read from the column 'photo'" in entry.user_message for entry in logs)
    assert project.table("0")["key"].to_pylist() == [f"A-{number:06d}" for number in range(5)]
