"""Pictures are read from their shards by key, whatever their layout, and shown as small JPEGs."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from boring_assets.engine.decoding.decode import Limits
from boring_assets.engine.decoding.thumbnail import pixel_digest, thumbnail
from boring_assets.engine.samples import Failure, Reason
from boring_assets.sample_data import write_sample_data
from boring_assets.search.pictures import Pictures
from resources.source import ShardSource
from tests.assets.project import Project
from tests.search.conftest import HELD_OUT
from tests.search.dataset import encoded, jpeg
from tests.seaweed import Seaweed


def upload(s3: Seaweed, folder: Path) -> str:
    uri = s3.new_prefix()
    s3.filesystem().put(f"{folder}/", uri, recursive=True)
    return uri


@pytest.mark.parametrize("layout", ["webdataset", "files", "parquet"])
@pytest.mark.parametrize("storage", ["local", "s3"])
def test_each_key_gives_its_own_picture(layout: str, storage: str, tmp_path: Path, s3_env: Seaweed) -> None:
    # The same seed draws the same pictures in every layout; as a column they are easy to read back.
    write_sample_data(tmp_path / "plain", 1, 24, "parquet", broken=4, image_size=64)
    write_sample_data(tmp_path / "in", 1, 24, layout, broken=4, image_size=64)
    uri = upload(s3_env, tmp_path / "in") if storage == "s3" else str(tmp_path / "in")
    limits = Limits()
    pictures = Pictures(ShardSource(input_dir=uri), limits)
    rows = pq.read_table(tmp_path / "plain" / "00000.parquet").to_pylist()
    for row in rows:
        data = pictures.read("00000", row["key"], 0)
        if row["jpg"] is None:
            assert isinstance(data, Failure)
            assert data.reason is Reason.NOT_DOWNLOADED
        else:
            assert (data or b"") == row["jpg"] or (not row["jpg"] and isinstance(data, Failure))
    made = [pictures.thumbnail("00000", row["key"], 0) for row in rows]
    assert sum(isinstance(one, bytes) for one in made) == 20
    for partition, key in (
        ("00000", "nope"),
        ("00000", "../00000"),
        ("nope", "x"),
        ("../in/00000", "x"),
        ("", ""),
    ):
        assert isinstance(pictures.read(partition, key, 0), Failure)


def test_pictures_without_keys_are_found_by_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [jpeg(each, 3) for each in HELD_OUT[:6]]
    images[1] = images[4] = b"broken"
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), tmp_path / "in" / "a.parquet")
    project = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", quiet_seconds=0)
    project.register()
    assert not project.run("a").error
    pictures = Pictures(ShardSource(input_dir=str(tmp_path / "in")), Limits())
    embedded = project.table("a")["row"].to_pylist()
    assert embedded == [0, 2, 3, 5]
    assert [pictures.read("a", None, row) for row in embedded] == [images[row] for row in embedded]
    for row in (6, -1, 10**11):
        assert isinstance(pictures.read("a", None, row), Failure)


def test_a_thumbnail_has_no_metadata_of_the_original() -> None:
    image = Image.new("RGB", (1000, 400), "red")
    secret = encoded(image, comment=b"secret comment", exif=b"Exif\0\0secret exif")
    small = thumbnail(secret, Limits())
    assert isinstance(small, bytes)
    assert b"secret" not in small
    with Image.open(io.BytesIO(small)) as shown:
        assert (shown.format, shown.size, shown.mode) == ("JPEG", (224, 90), "RGB")
    for mode in ("L", "P", "RGBA", "1", "LA", "I;16"):
        assert isinstance(thumbnail(encoded(Image.new(mode, (50, 50)), "PNG"), Limits()), bytes), mode


def test_a_wrong_or_too_large_picture_is_a_failure() -> None:
    not_allowed = encoded(Image.new("RGB", (50, 50)), "PPM")
    for data in (b"", b"<svg/>", jpeg(HELD_OUT[0], 1)[:200], not_allowed):
        made = thumbnail(data, Limits())
        assert isinstance(made, Failure)
        assert pixel_digest(data, Limits()) is None
    bomb = encoded(Image.new("1", (30_000, 30_000)), "PNG")
    for limits in (Limits(), Limits(bytes=10)):
        made = thumbnail(bomb, limits)
        assert isinstance(made, Failure)
        assert made.reason is Reason.TOO_LARGE
        assert pixel_digest(bomb, limits) is None
