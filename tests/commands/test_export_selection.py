"""Exports of a part of an output: by labels and scores, without near duplicates, with the images."""

import json
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from boring_assets.cli import main
from boring_assets.commands.exporting import export_all
from boring_assets.errors import SettingsError, StorageError
from boring_assets.settings import Settings
from boring_assets.storage.root import open_root
from boring_assets.tiny.pictures import COLOURS
from partitions.discovery import discover
from tests.command_line import CommandLine
from tests.seaweed import Seaweed

WHERE = "colour IN ('red', 'blue') AND clip_score > 0.2"


class Gallery:
    """Sample pictures with a tar beside each parquet, embedded, labelled and scored."""

    def __init__(self, folder: Path) -> None:
        call = CommandLine(folder)
        sizes = ("--num-shards", 2, "--samples-per-shard", 30, "--image-size", 64, "--broken", 2)
        self.input, self.output = folder / "in", folder / "out"
        call("sample-data", self.input, *sizes, "--format", "webdataset")
        call("embed", self.input, self.output, "--quiet-seconds", 0)
        config = folder / "settings.toml"
        config.write_text(f"[heads.colour]\nlabels = {list(COLOURS)}\ntemplates = ['a {{}} shape']\n")
        call("label", self.output, "--config", config)
        call("clip-scores", self.output)
        self.call = call

    def joined(self) -> pl.DataFrame:
        """All rows with their labels and scores, joined by another tool than the export's."""
        parts = []
        for file in sorted((self.output / "image_embeddings").glob("*.parquet")):
            rows = pl.read_parquet(file).with_columns(partition=pl.lit(file.stem))
            for folder in ("image_labels", "clip_scores"):
                more = pl.read_parquet(self.output / folder / file.name)
                rows = rows.join(more.drop("key"), on="row", how="left", maintain_order="left")
            parts.append(rows)
        return pl.concat(parts)

    def wanted(self) -> pl.DataFrame:
        return self.joined().filter(pl.col("colour").is_in(["red", "blue"]), pl.col("clip_score") > 0.2)

    def export(self, dest: Path, layout: str, *options: str) -> Path:
        arguments = [str(self.output), str(dest), "--format", layout, "--input", str(self.input), *options]
        done = CliRunner().invoke(main, ["export", *arguments])
        assert done.exit_code == 0, done.output
        return dest


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    made = Gallery(tmp_path_factory.mktemp("selection"))
    assert 3 < len(made.wanted()) < len(made.joined())
    return made


def test_every_layout_has_the_chosen_rows_with_their_labels_and_scores(
    gallery: Gallery, tmp_path: Path
) -> None:
    lancedb = pytest.importorskip("lancedb")
    datasets = pytest.importorskip("datasets")
    wanted = gallery.wanted()
    columns = ["key", "partition", "row", "colour", "colour_score", "clip_score"]

    dest = gallery.export(tmp_path / "npy", "npy", "--where", WHERE)
    assert np.array_equal(np.load(dest / "embeddings.npy"), wanted["embedding"].to_numpy())
    assert pl.read_parquet(dest / "rows.parquet").select(columns).equals(wanted.select(columns))
    facts = json.loads((dest / "export.json").read_text())
    assert (facts["rows"], facts["of_rows"], facts["where"]) == (len(wanted), 56, WHERE)

    dest = gallery.export(tmp_path / "clip", "clip-retrieval", "--where", WHERE)
    arrays = [np.load(path) for path in sorted((dest / "img_emb").iterdir())]
    rows = [pl.read_parquet(path) for path in sorted((dest / "metadata").iterdir())]
    assert [len(array) for array in arrays] == [len(frame) for frame in rows]
    assert pl.concat(rows)["colour"].to_list() == wanted["colour"].to_list()

    dest = gallery.export(tmp_path / "hf", "hf", "--where", WHERE)
    found = datasets.load_dataset(str(dest), split="train", cache_dir=str(tmp_path / "cache"))
    assert found["key"][:] == wanted["key"].to_list()
    assert found["colour"][:] == wanted["colour"].to_list()

    dest = gallery.export(tmp_path / "npz", "npz", "--where", WHERE)
    keys = [np.load(path)["key"] for path in sorted(dest.glob("*.npz"))]
    assert np.concatenate(keys).tolist() == wanted["key"].to_list()

    table = lancedb.connect(gallery.export(tmp_path / "lance", "lance", "--where", WHERE))
    held = pl.DataFrame(table.open_table("image_embeddings").to_arrow())
    assert held.select(columns).equals(wanted.select(columns))


def test_new_shards_are_read_by_webdataset_and_by_this_project(gallery: Gallery, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    wanted = gallery.wanted()
    dest = gallery.export(tmp_path / "shards", "webdataset", "--where", WHERE)
    samples = list(wds.WebDataset(str(dest / "00000.tar"), shardshuffle=False).decode("rgb8"))
    assert sorted(sample["__key__"] for sample in samples) == sorted(wanted["key"])
    by_key = {row["key"]: row for row in wanted.to_dicts()}
    for sample in samples:
        row = by_key[sample["__key__"]]
        assert sample["jpg"].shape == (64, 64, 3)
        assert sample["txt"] == row["caption"]
        assert np.array_equal(sample["npy"], np.array(row["embedding"], np.float32))
        assert sample["json"]["colour"] == row["colour"]
        assert sample["json"]["clip_score"] == pytest.approx(row["clip_score"])
        assert (sample["json"]["partition"], sample["json"]["row"]) == (row["partition"], row["row"])
        assert sample["json"]["width"] == row["meta_width"]

    gallery.call("embed", dest, tmp_path / "again", DAGSTER_HOME=str(tmp_path / "home"))
    again = pl.read_parquet(tmp_path / "again" / "image_embeddings" / "*.parquet")
    both = again.join(wanted, on="key", suffix="_before")
    assert len(both) == len(again) == len(wanted)
    assert both["caption"].to_list() == both["caption_before"].to_list()
    assert both["meta_colour"].to_list() == both["colour"].to_list()
    a, b = both["embedding"].to_numpy(), both["embedding_before"].to_numpy()
    assert np.einsum("nd,nd->n", a, b).min() > 0.9999


def test_new_shards_on_s3(gallery: Gallery, s3_env: Seaweed) -> None:
    dest = open_root(f"{s3_env.new_prefix()}/shards")
    settings = Settings(input_dir=str(gallery.input))
    facts = export_all(str(gallery.output), dest.uri, "webdataset", settings=settings)
    (shard,) = discover(dest, quiet_seconds=0).shards
    with dest.fs.open(shard.path) as file, tarfile.open(fileobj=file) as tar:
        assert sum(name.endswith(".jpg") for name in tar.getnames()) == facts["rows"] == 56


def test_an_interrupted_export_is_no_input(gallery: Gallery, tmp_path: Path) -> None:
    (gallery.input / "00001.parquet").rename(tmp_path / "away")
    try:
        settings = Settings(input_dir=str(gallery.input))
        with pytest.raises(StorageError, match="00001"):
            export_all(str(gallery.output), str(tmp_path / "part"), "webdataset", settings=settings)
    finally:
        (tmp_path / "away").rename(gallery.input / "00001.parquet")
    assert not (tmp_path / "part" / "export.json").exists()
    said = gallery.call("embed", tmp_path / "part", tmp_path / "none", code=1)
    assert "outputs or exports of boring_assets, not inputs" in said.stderr


def test_keys_that_are_no_file_names_or_repeated_become_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.search.conftest import HELD_OUT
    from tests.search.dataset import jpeg, write_shard

    images = [jpeg(each, 1) for each in HELD_OUT[:3]]
    call = CommandLine(tmp_path)
    for name in "ab":
        write_shard(tmp_path / "in" / f"{name}.parquet", ["x", "y", None], images)
        path = tmp_path / "in" / f"{name}.parquet"
        pl.read_parquet(path).with_columns(key=pl.Series(["same", "../up", "a.b"])).write_parquet(path)
    call("embed", tmp_path / "in", tmp_path / "out")
    settings = Settings(input_dir=str(tmp_path / "in"))
    monkeypatch.setattr("boring_assets.commands.export_webdataset._SAMPLES", 4)
    facts = export_all(str(tmp_path / "out"), str(tmp_path / "shards"), "webdataset", settings=settings)
    assert (facts["rows"], facts["left_out"]) == (6, {})
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        names = [name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg")]
        assert names == ["same", "000000001", "000000002", "000000003"]
        member = tar.extractfile("000000001.json")
        assert member
        assert json.load(member)["key"] == "../up"
    with tarfile.open(tmp_path / "shards" / "00001.tar") as tar:
        assert [name for name in tar.getnames() if name.endswith("jpg")] == ["000000004.jpg", "000000005.jpg"]


def test_one_of_each_group_of_near_duplicates(tmp_path: Path) -> None:
    from tests.search.conftest import HELD_OUT
    from tests.search.dataset import jpeg, write_shard

    first, second, third = (jpeg(each, 1) for each in HELD_OUT[:3])
    write_shard(tmp_path / "in" / "a.parquet", ["1", "2"], [first, second], width=[10, 20])
    write_shard(tmp_path / "in" / "b.parquet", ["1", "3"], [first, third], width=[30, 40])
    call = CommandLine(tmp_path)
    call("embed", tmp_path / "in", tmp_path / "out")

    def captions(name: str, where: str = "") -> list[str]:
        dest = str(tmp_path / name)
        export_all(str(tmp_path / "out"), dest, "npy", where=where, no_near_duplicates=True)
        return pl.read_parquet(tmp_path / name / "rows.parquet")["key"].to_list()

    with pytest.raises(StorageError, match="boring-assets near-duplicates"):
        captions("none")
    call("near-duplicates", tmp_path / "out", "--threshold", 0.9999)
    assert captions("all") == ["a0000", "a0001", "b0001"]
    # The one that is kept is one that the condition chooses.
    assert captions("wide", "meta_width > 15") == ["a0001", "b0000", "b0001"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing > 3", "no column nothing. The columns are"),
        ("colour = ", "unable to parse"),
        ("colour", "neither true nor false"),
        ("clip_score > avg(clip_score)", "avg uses several rows"),
        ("clip_score > 'x'", "cannot compare"),
        ("colour = 'nothing'", "No row of .* There are 56 rows"),
    ],
)
def test_a_wrong_condition_is_named(gallery: Gallery, tmp_path: Path, where: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        export_all(str(gallery.output), str(tmp_path / "dest"), "npy", where=where)
    assert not (tmp_path / "dest").exists()


def test_the_images_need_the_input(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No input is set"):
        export_all(str(gallery.output), str(tmp_path / "dest"), "webdataset")
