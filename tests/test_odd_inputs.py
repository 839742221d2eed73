"""One input of many odd shards through `boring-assets`: every image is embedded, failed or named as left out.

The same few images are in all of them, so an embedding shows which image its row really had.
"""

import base64
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_line import CommandLine
from tests.engine.inputs.test_streamed import example, framed
from tests.engine.kinds import jpeg, write_tar, write_typed_tar
from tests.seaweed import Seaweed

IMAGES = [jpeg(seed) for seed in range(3)]
BASE64 = [base64.b64encode(image) for image in IMAGES]
THUMBNAIL = pa.array([[{"png": IMAGES[0]}]] * 3)
ROWS = {  # image of each row by partition; None has failed
    "plain": [0, 1, 2],
    "dictionary": [0, 1, 2],
    "a b/date=2024-01-01/x%20#?ü": [2, 1, 0],
    "part.parquet/part-0": [1, 1, 1],
    "base64": [0, 1, 2],
    "data urls": [0, 1, None],
    "nulls": [None, None],
    "tars/latin": [0, 1],
    "tars/links": [0, None, None, 1],
    "folders/names": [1, 0, None],
    "records": [0, 1],
}
REASONS = {"data urls": "decode_error", "nulls": "missing_image", "tars/links": "missing_image",
           "folders/names": "missing_image"}  # fmt: skip
LEFT_OUT = ("OTHER.PARQUET", "more.tfrec", "tars/old.tar.bz2")


def _write(folder: Path) -> None:
    def parquet(name: str, **columns: object) -> None:
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)

    plain = {"jpg": IMAGES, "thumbnail": THUMBNAIL, "row": [7, 8, 9], "a.b": ["x"] * 3}
    parquet("plain", **plain, key=[b"\xff" * 16, b"b" * 16, None])
    parquet("dictionary", jpg=pa.array(IMAGES).dictionary_encode(), caption=[[("en", "a")]] * 3)
    parquet("a b/date=2024-01-01/x%20#?ü", jpg=IMAGES[::-1])
    parquet("part.parquet/part-0", jpg=[IMAGES[1]] * 3)
    parquet("base64", image=BASE64, small=[text.decode() for text in BASE64])
    parquet("data urls", url=[*(f"data:image/jpeg;base64,{text.decode()}" for text in BASE64[:2]), "data:,?"])
    parquet("nulls", image=pa.nulls(2))
    parquet("folders/names", key=["x/one.jpg", "two.JPG", "gone"])
    for name, image in (("x/one.jpg", IMAGES[1]), ("two.JPG", IMAGES[0])):
        (folder / "folders" / "names" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "folders" / "names" / name).write_bytes(image)
    (folder / "tars").mkdir()
    names = ("é.jpg", "ü.jpg")
    write_tar(folder / "tars" / "latin.tar", zip(names, IMAGES, strict=False), encoding="latin-1",
              format=tarfile.GNU_FORMAT)  # fmt: skip
    links = (
        ("a.jpg", tarfile.REGTYPE, IMAGES[0]),
        ("b.jpg", tarfile.SYMTYPE, b""),
        ("c.jpg", tarfile.LNKTYPE, b""),
        ("README", tarfile.REGTYPE, b"text"),
        ("d.jpg", tarfile.REGTYPE, IMAGES[1]),
    )
    write_typed_tar(folder / "tars" / "links.tar", links)
    records = [example(image=text, mask=text) for text in BASE64[:2]]
    (folder / "records.tfrecord").write_bytes(b"".join(map(framed, records)))
    for name in (*LEFT_OUT, "_delta_log/0.parquet", "plain.parquet.crc", "_SUCCESS"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")


def _check(output: Path) -> None:
    found: dict[int, np.ndarray] = {}
    for key, images in ROWS.items():
        table = pq.ParquetFile(output / "image_embeddings" / f"{key}.parquet").read()
        assert table["row"].to_pylist() == [row for row, image in enumerate(images) if image is not None]
        vectors = table["embedding"].to_pylist()
        for image, values in zip((one for one in images if one is not None), vectors, strict=True):
            vector = np.array(values)
            np.testing.assert_allclose(vector, found.setdefault(image, vector), atol=1e-3)
        failed = pq.ParquetFile(output / "image_failures" / f"{key}.parquet").read().to_pylist()
        assert [one["row"] for one in failed] == [row for row, image in enumerate(images) if image is None]
        assert {one["reason"] for one in failed} <= {REASONS.get(key)}
        kept = [row | {"embedding": None, "meta_key": None} for row in (*table.to_pylist(), *failed)]
        assert not any(text in str(kept) for text in ("JFIF", BASE64[0][:20].decode()))
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_every_image_of_an_odd_input_is_accounted_for(
    cli: CommandLine, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    _write(tmp_path / "in")
    source, output = "in", "out"
    if place == "s3":
        server: Seaweed = request.getfixturevalue("s3_env")
        prefix = server.new_prefix()
        source, output = f"{prefix}/in", f"{prefix}/out"
        server.filesystem().put(f"{tmp_path}/in/", f"{prefix.removeprefix('s3://')}/in/", recursive=True)
    said = cli("embed", source, output, "--quiet-seconds", 0).output
    total = sum(map(len, ROWS.values()))
    failed = sum(image is None for images in ROWS.values() for image in images)
    assert f"{total}: {total - failed} embedded, {failed} failed" in said
    assert all(name in said for name in LEFT_OUT)
    if place == "s3":
        server.filesystem().get(f"{prefix.removeprefix('s3://')}/out/", f"{tmp_path}/out/", recursive=True)
    _check(tmp_path / "out")
    assert "all sound" in cli("verify", output, "--input", source).output
    assert "Nothing to do" in cli("embed", source, output, "--quiet-seconds", 0).output
    again = cli("retry", source, output, "--quiet-seconds", 0).output
    assert f"{failed} failed images" in again
    assert f"{total - failed} embeddings of" in cli(
        "export", output, tmp_path / "wds", "--format", "webdataset", "--input", source
    ).output  # fmt: skip
