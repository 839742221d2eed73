"""`boring-assets embed`, call after call: what is done, what is left alone, and what is said."""

import io
import json
import tarfile
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.command_line import CommandLine
from tests.seaweed import Seaweed, forget_filesystems


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


def test_each_call_embeds_only_new_changed_and_lost_shards(cli: CommandLine) -> None:
    cli.sample_data("in", shards=3)
    out = Path("out")
    said = cli("embed", "in", out).stdout
    assert "Shards    3 embedded\nImages    24: 24 embedded, 0 failed\nSpeed " in said
    assert "Output    out/image_embeddings/*.parquet\n" in said
    assert "boring-assets failures" not in said
    assert "BORING_INPUT_DIR=in BORING_OUTPUT_DIR=out BORING_MODEL=boring-tiny BORING_PRECISION=fp32 " in said
    before = cli.stamps(out)
    assert set(before) == {"00000", "00001", "00002"}

    def changed() -> set[str]:
        nonlocal before
        now, old = cli.stamps(out), before
        before = now
        return {key for key in now if now[key] != old.get(key)}

    assert cli("embed", "in", out).stdout == "Nothing to do: 3 shards embedded already.\n"
    assert not changed()
    cli.sample_data("in", "--first-shard", 3, shards=1)
    assert "Shards    1 embedded\n" in cli("embed", "in", out).stdout
    assert changed() == {"00003"}
    cli.sample_data("in", "--seed", 5, shards=1)
    assert "Shards    1 embedded\n" in cli("embed", "in", out).stdout
    assert changed() == {"00000"}
    (out / "image_embeddings/00002.parquet").unlink()
    before.pop("00002")
    assert "Shards    1 embedded\n" in cli("embed", "in", out).stdout
    assert changed() == {"00002"}

    said = cli("embed", "in", out, "--precision", "bf16", code=1).stderr
    assert (
        "out holds 4 shards embedded with other settings than model boring-tiny, precision bf16, float32"
        in said
    )
    assert "00000, 00001, 00002, 00003. Add --redo" in said
    assert not changed()
    assert "Shards    4 embedded\n" in cli("embed", "in", out, "--precision", "bf16", "--redo").stdout
    assert changed() == set(before)
    assert json.loads((out / "metadata.json").read_bytes())["precision"] == "bf16"


def test_the_next_call_continues_after_max_samples(cli: CommandLine) -> None:
    cli.sample_data("in", shards=3)
    assert "Shards    2 embedded\nImages    10: " in cli("embed", "in", "out", "--max-samples", 10).stdout
    assert sorted(cli.stamps(Path("out"))) == ["00000", "00001"]
    first = cli.stamps(Path("out"))["00000"]
    assert "Shards    2 embedded\nImages    16: " in cli("embed", "in", "out").stdout
    assert cli.stamps(Path("out"))["00000"] == first
    assert pq.read_metadata("out/image_embeddings/00001.parquet").num_rows == 8


def test_a_second_input_under_the_same_name_is_warned_of(cli: CommandLine) -> None:
    first, second, moved = cli.sample_data("first"), cli.sample_data("second"), cli.folder / "moved"
    out, other = cli.folder / "out", cli.folder / "other"
    warning = f"partitions named `shards` of another input, {first}"
    assert warning not in cli("embed", first, out).stderr
    assert warning in cli("embed", second, other).stderr
    assert warning not in cli("embed", second, other, BORING_DATASET="second").stderr
    assert warning in cli("register", second, other).stderr
    first.rename(moved)
    cli("set-input", out, moved)
    assert "another input" not in cli("embed", moved, out).stderr
    with dg.DagsterInstance.from_config(cli.env["DAGSTER_HOME"]) as instance:
        for key in instance.get_dynamic_partitions("shards"):
            instance.delete_dynamic_partition("shards", key)
    assert "another input" not in cli("embed", second, other).stderr


def test_settings_from_a_file_and_who_wins(cli: CommandLine) -> None:
    cli.sample_data("in", shards=1)
    Path("my.toml").write_text('output_dtype = "float16"\nbatch_size = 3\nmax_samples = 4\n')
    said = cli("embed", "in", "out", "--config", "my.toml", BORING_MAX_SAMPLES="6").stdout
    assert "Images    6: " in said
    assert "BORING_OUTPUT_DTYPE=float16" in said
    assert "halffloat" in str(pq.read_schema("out/image_embeddings/00000.parquet").field("embedding").type)
    said = cli(
        "embed", "in", "out2", "--config", "my.toml", "--max-samples", 5, BORING_MAX_SAMPLES="6"
    ).stdout
    assert "Images    5: " in said


def test_a_corrupt_shard_does_not_fail_the_others_and_is_embedded_once_it_is_repaired(
    cli: CommandLine,
) -> None:
    cli.sample_data("in", shards=3)
    good = Path("in/00001.parquet").read_bytes()
    Path("in/00001.parquet").write_bytes(good[:-50])
    for embedded in (2, 0):
        said = cli("embed", "in", "out", code=3).stdout
        assert f"Shards    {embedded} embedded, 1 failed\n" in said
        assert f"Failed    00001: {cli.folder}/in/00001.parquet cannot be read as parquet" in said
        assert "Write it again, or remove it from the input." in said
        assert ("Images" in said) == bool(embedded)
        assert sorted(cli.stamps(Path("out"))) == ["00000", "00002"]
    before = cli.stamps(Path("out"))
    assert cli("status", "--input", "in", "--output", "out", code=4).stdout.splitlines() == [
        "failed                  1  00001",
        "done                    2  00000, 00002",
    ]
    Path("in/00001.parquet").write_bytes(good)
    assert "Shards    1 embedded\n" in cli("embed", "in", "out").stdout
    assert {key: stamp for key, stamp in cli.stamps(Path("out")).items() if key in before} == before


def test_shards_that_are_still_being_written_wait(cli: CommandLine) -> None:
    cli.sample_data("in", shards=2)
    Path("in/00001_stats.json").unlink()
    left = "Left out  1 shard still being written: 00001\n"
    assert cli("embed", "in", "out").stdout.startswith(f"{left}Shards    1 embedded\n")
    assert cli("embed", "in", "out").stdout == f"{left}Nothing else to do: 1 shard embedded already.\n"
    assert "Shards    1 embedded\n" in cli("embed", "in", "out", "--quiet-seconds", 0).stdout
    Path("in/00000_stats.json").unlink()
    said = cli("embed", "in", "out2", code=1).stderr
    assert "2 shards may still be growing" in said
    assert "--quiet-seconds" in said


def test_names_that_look_like_markup_are_shown_as_they_are(cli: CommandLine) -> None:
    cli.sample_data("in", shards=1, samples=3)
    Path("in/[").mkdir()
    for name in ("a[red]b", "[/]", "a:cat:b", "x" * 150):
        for suffix in (".parquet", "_stats.json"):
            Path(f"in/{name}{suffix}").write_bytes(Path(f"in/00000{suffix}").read_bytes())
        Path(f"in/{name}.parquet").write_bytes(b"broken")
    said = cli("embed", "in", "out", code=3).stdout
    for name in ("a[red]b", "[/]", "a:cat:b", "x" * 150):
        assert f"Failed    {name}: {cli.folder}/in/{name}.parquet cannot be read" in said


def test_embed_from_s3_to_s3(cli: CommandLine, s3_env: Seaweed) -> None:
    local = cli.sample_data("in", "--broken", 2, shards=2)
    source, out = s3_env.new_prefix(), s3_env.new_prefix()
    fs = s3_env.filesystem()
    fs.put(f"{local}/", f"{source}/", recursive=True)
    said = cli("embed", source, out).stdout
    assert "Shards    2 embedded\nImages    16: 12 embedded, 4 failed\n" in said
    assert f"Output    {out}/image_embeddings/*.parquet\n" in said
    assert cli("embed", source, out).stdout == "Nothing to do: 2 shards embedded already.\n"
    with fs.open(f"{out}/metadata.json") as file:
        assert json.load(file)["num_samples"] == 12
    assert "2  not_downloaded" in cli("failures", "--output", out).stdout
    assert cli("status", "--input", source, "--output", out).stdout.split()[:2] == ["done", "2"]

    secret = "wrong-secret-value-0123456789"
    for bad in (
        {"AWS_SECRET_ACCESS_KEY": secret},
        s3_env.env_of(s3_env.reader_key, s3_env.reader_secret),
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    ):
        forget_filesystems()  # a process of its own would start without one
        result = cli("embed", source, out, code=1, **bad)
        assert result.output.count("\n") == 1
        assert source in result.output or out in result.output
        for value in (secret, s3_env.secret, s3_env.reader_secret):
            assert value not in result.output
    forget_filesystems()
    assert "Nothing to do" in cli("embed", source, out).stdout


def images_of(folder: Path, shard: str) -> dict[str, bytes]:
    """Encoded images of a shard by key, found without the code under test."""
    table = pq.read_table(folder / f"{shard}.parquet")
    for column in {"jpg", "webp"} & set(table.column_names):
        pairs = zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True)
        return {key: image for key, image in pairs if image is not None}
    if (folder / f"{shard}.tar").exists():
        with tarfile.open(folder / f"{shard}.tar") as tar:
            return {
                member.name.removesuffix(".jpg"): tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.name.endswith(".jpg")
            }
    return {path.stem: path.read_bytes() for path in (folder / shard).glob("*.jpg")}


def is_decodable(image: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", ["webdataset", "files", "parquet", "parquet_webp", "webdataset_raw"])
def test_real_img2dataset_output(cli: CommandLine, shared_data: Path, name: str) -> None:
    folder = shared_data / name
    assert "embedded" in cli("embed", folder, "out").stdout
    shards = sorted(path.stem for path in folder.glob("*.parquet"))
    assert sorted(cli.stamps(Path("out"))) == shards
    for shard in shards:
        rows = pl.read_parquet(folder / f"{shard}.parquet", columns=["key", "status"])
        images = images_of(folder, shard)
        decodable = [key for key in rows["key"] if key in images and is_decodable(images[key])]
        not_downloaded = set(rows.filter(pl.col("status") != "success")["key"])
        assert 0 < len(decodable) < len(rows)
        assert not_downloaded
        embedded = pq.read_table(f"out/image_embeddings/{shard}.parquet")["key"].to_pylist()
        assert embedded == decodable
        failures = pl.read_parquet(f"out/image_failures/{shard}.parquet")
        assert sorted(failures["key"]) == sorted(set(rows["key"]) - set(decodable))
        for key, reason in failures.select("key", "reason").iter_rows():
            assert reason == ("not_downloaded" if key in not_downloaded else "decode_error"), key
