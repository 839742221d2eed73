"""Sample data must look to a reader as img2dataset's own output does, down to types and member names."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from boring_assets.sample_data import EncodeFormat, Layout, write_sample_data
from tests.command_line import CommandLine
from tests.seaweed import Seaweed

REAL = Path(__file__).parents[2] / "shared" / "data"
LAYOUTS: list[tuple[Layout, EncodeFormat]] = [("webdataset", "jpg"), ("files", "png"), ("parquet", "webp")]


def stored_images(parquet: Path, layout: Layout, encode_format: EncodeFormat) -> dict[str, bytes | None]:
    """Key to stored bytes, in the order of the rows; None where there is no image."""
    keys = pq.read_table(parquet)["key"].to_pylist()
    if layout == "parquet":
        return dict(zip(keys, pq.read_table(parquet)[encode_format].to_pylist(), strict=True))
    if layout == "files":
        paths = {key: parquet.with_suffix("") / f"{key}.{encode_format}" for key in keys}
        return {key: path.read_bytes() if path.exists() else None for key, path in paths.items()}
    found = tar_contents(parquet.with_suffix(".tar"))
    return {key: found.get(f"{key}.{encode_format}") for key in keys}


def tar_contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def decodes(image: bytes | None) -> bool:
    try:
        Image.open(io.BytesIO(image or b"")).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return False
    return True


@pytest.mark.parametrize(("layout", "encode_format"), LAYOUTS)
def test_a_shard_reads_back_as_documented(
    tmp_path: Path, layout: Layout, encode_format: EncodeFormat
) -> None:
    paths = write_sample_data(
        tmp_path, 2, 120, layout, encode_format=encode_format, broken=9, image_size=48, first_shard=3
    )
    assert paths == [tmp_path / "00003.parquet", tmp_path / "00004.parquet"]
    parquet = pq.ParquetFile(paths[0])
    assert [parquet.metadata.row_group(i).num_rows for i in range(2)] == [100, 20]
    rows = parquet.read().to_pylist()
    images = stored_images(paths[0], layout, encode_format)
    assert sorted(images) == [f"{3000 + i:08d}" for i in range(120)]
    assert list(images) != sorted(images), "img2dataset's rows are not in key order"
    assert all(row["url"].startswith("https://example.com/") for row in rows)
    assert len({row["caption"] for row in rows}) == 120

    failed = [row for row in rows if row["status"] == "failed_to_download"]
    assert len(failed) == 3
    assert all(row["error_message"] and row["width"] is None and images[row["key"]] is None for row in failed)
    broken = [row for row in rows if row["status"] == "success" and not decodes(images[row["key"]])]
    kinds = [images[row["key"]] for row in broken]
    assert len(broken) == 6
    assert kinds.count(b"") == 2
    assert sum(b"<html>" in (kind or b"") for kind in kinds) == 2

    good = [row for row in rows if row["status"] == "success" and row not in broken]
    assert {(row["width"], row["original_height"]) for row in good} == {(48, 48)}
    digests = {hashlib.sha256(images[row["key"]] or b"").hexdigest() for row in good}
    assert digests == {row["sha256"] for row in good}
    assert len(digests) == 111, "no picture twice"

    stats = json.loads((tmp_path / "00003_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (120, 117, 3)
    assert sum(stats["status_dict"].values()) == 120
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("layout", "real"), [("webdataset", "webdataset_raw"), ("files", "files"), ("parquet", "parquet_webp")]
)
def test_sample_data_has_the_layout_of_img2dataset(tmp_path: Path, layout: Layout, real: str) -> None:
    theirs = REAL / real / "00000.parquet"
    if not theirs.exists():
        pytest.skip(f"img2dataset's own output is not at {theirs}")
    (ours,) = write_sample_data(tmp_path, 1, 300, layout, encode_format="webp", broken=4, image_size=32)
    their_schema = [
        field for field in pq.read_schema(theirs) if field.name not in ("uid", "similarity", "LICENSE")
    ]
    assert list(pq.read_schema(ours)) == their_schema
    assert pq.ParquetFile(ours).metadata.num_row_groups == pq.ParquetFile(theirs).metadata.num_row_groups
    their_stats, our_stats = (
        json.loads(path.with_name("00000_stats.json").read_text()) for path in (theirs, ours)
    )
    assert list(our_stats) == list(their_stats)
    their_key, our_key = (pq.read_table(path)["key"][0].as_py() for path in (theirs, ours))
    assert len(our_key) == len(their_key)
    if layout == "webdataset":
        their_members, our_members = (tar_contents(path.with_suffix(".tar")) for path in (theirs, ours))
    elif layout == "files":
        their_members, our_members = (
            {file.name: file.read_bytes() for file in sorted(path.with_suffix("").iterdir())}
            for path in (theirs, ours)
        )
    else:
        return
    their_names, our_names = (list(members)[:3] for members in (their_members, our_members))
    assert {name.split(".")[1] for name in our_names} == {"webp", "json", "txt"}
    assert {name.split(".")[1] for name in their_names} == {"jpg", "json", "txt"}
    their_json, our_json = (
        next(content for name, content in members.items() if name.endswith(".json"))
        for members in (their_members, our_members)
    )
    extra = {"uid", "similarity", "LICENSE"}
    assert list(json.loads(our_json)) == [name for name in json.loads(their_json) if name not in extra]
    assert our_json.startswith(b'{\n    "')


@pytest.mark.parametrize(("layout", "encode_format"), LAYOUTS)
def test_equal_arguments_give_equal_bytes(
    tmp_path: Path, layout: Layout, encode_format: EncodeFormat
) -> None:
    def files(seed: int, folder: str) -> dict[str, bytes]:
        root = tmp_path / folder
        write_sample_data(root, 2, 7, layout, encode_format=encode_format, broken=5, image_size=32, seed=seed)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first = files(1, "first")
    assert files(1, "second") == first
    assert files(1, "first") == first, "replacing a shard changes nothing"
    assert files(2, "other")["00000.parquet"] != first["00000.parquet"]


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
def test_sample_data_is_written_to_s3_as_to_a_folder(s3_env: Seaweed, tmp_path: Path, layout: str) -> None:
    prefix, sizes = s3_env.new_prefix(), ("--num-shards", 2, "--samples-per-shard", 6, "--image-size", 32)
    cli = CommandLine(tmp_path)
    for target in (prefix, prefix, tmp_path / "local"):  # twice: shards that are there are replaced
        cli("sample-data", target, *sizes, "--format", layout, "--broken", 1)
    fs, root = s3_env.filesystem(), prefix.removeprefix("s3://")
    remote = {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}
    local = {
        path.relative_to(tmp_path / "local").as_posix(): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    assert remote == local
