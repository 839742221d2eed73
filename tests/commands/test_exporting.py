"""Exports: each layout is opened by the tool that it is for, and holds every row in order."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from boring_assets.cli import main
from boring_assets.commands.exporting import FORMATS, export_all
from boring_assets.errors import SettingsError, StorageError
from boring_assets.output.files import write_table
from boring_assets.storage.root import open_root
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import finished_shard
from tests.seaweed import Seaweed

DIM = 8


def commit(output: str, dtype: str = "float32", dim: int = DIM, keys: tuple[str, ...] = ()) -> None:
    """Three partitions: one in a folder, one with a column more, one without any embedding."""
    embeddings = EmbeddingsIOManager(output_dir=output, output_dtype=dtype)
    for key in keys or ("00000", "part/00001", "00002"):
        shard = finished_shard(key, embedded={"00000": 30, "00002": 0}.get(key, 40), dim=dim)
        if key == "part/00001":
            licence = pa.array(["CC0"] * shard.rows.num_rows)
            shard = replace(shard, rows=shard.rows.append_column("licence", licence))
        embeddings.commit(shard, {"dim": dim})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    commit(str(tmp_path / "out"))
    return tmp_path / "out"


def expected(output: Path) -> pl.DataFrame:
    """The rows by another reader than the export's, in its order: by path."""
    files = sorted((output / "image_embeddings").rglob("*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files], how="diagonal")


def vectors(frame: pl.DataFrame) -> np.ndarray:
    return frame["embedding"].to_numpy()


def exported(output: Path, layout: str) -> Path:
    dest = output.with_name(layout)
    done = CliRunner().invoke(main, ["export", str(output), str(dest), "--format", layout])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("70 embeddings of 3 shards")
    assert json.loads((dest / "export.json").read_text())["rows"] == 70
    return dest


def test_clip_retrieval_finds_its_files_and_faiss_its_neighbours(output: Path) -> None:
    faiss = pytest.importorskip("faiss")
    dest = exported(output, "clip-retrieval")
    arrays, tables = sorted((dest / "img_emb").iterdir()), sorted((dest / "metadata").iterdir())
    assert [path.stem.replace("img_emb", "metadata") for path in arrays] == [path.stem for path in tables]
    index = faiss.IndexFlatIP(DIM)
    for path in arrays:
        index.add(np.load(path))
    rows = pl.concat([pl.read_parquet(path) for path in tables])
    assert index.ntotal == len(rows) == 70
    of_old = expected(output)
    _, nearest = index.search(vectors(of_old)[41:42], 1)
    assert rows["key"][int(nearest[0, 0])] == of_old["key"][41]
    assert rows["meta_licence"].to_list() == of_old["meta_licence"].to_list()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_is_one_array_beside_its_rows(tmp_path: Path, dtype: str) -> None:
    output = tmp_path / "out"
    commit(str(output), dtype)
    dest = exported(output, "npy")
    array = np.load(dest / "embeddings.npy", mmap_mode="r")
    assert (array.shape, array.dtype) == ((70, DIM), np.dtype(dtype))
    files = sorted((output / "image_embeddings").rglob("*.parquet"))
    old = np.concatenate(
        [np.stack(column) for file in files if len(column := pq.read_table(file)["embedding"].to_numpy())]
    )
    assert np.array_equal(array, old)
    rows = pl.read_parquet(dest / "rows.parquet")
    assert rows["partition"].to_list() == ["00000"] * 30 + ["part/00001"] * 40
    assert rows["key"][69] == "part/00001-39"


def test_npz_is_an_archive_a_partition_without_pickles(output: Path) -> None:
    dest = exported(output, "npz")
    with np.load(dest / "part" / "00001.npz", allow_pickle=False) as archive:
        assert set(archive) == {"embeddings", "row", "key", "url", "caption"}
        assert archive["row"].tolist() == list(range(40))
        assert np.array_equal(archive["embeddings"], vectors(expected(output))[30:])
        assert archive["key"][0] == "part/00001-0"
    with np.load(dest / "00002.npz", allow_pickle=False) as archive:
        assert archive["embeddings"].shape == (0, DIM)


@pytest.mark.parametrize("layout", ["npy", "npz", "lance", "hf"])
def test_rows_of_the_input_are_exported_from_files_of_earlier_versions_too(
    tmp_path: Path, layout: str
) -> None:
    embeddings = EmbeddingsIOManager(output_dir=str(tmp_path / "out"))
    shard = finished_shard("0", embedded=3, failed=2)
    failures = dict(zip((0, 2), shard.failures.values(), strict=True))
    odd = shard.rows.append_column("a.b", pa.array(["x"] * 5))
    shard = replace(shard, rows=odd, embedded=np.array([1, 3, 4]), failures=failures)
    embeddings.commit(shard, {"dim": DIM})
    table = pq.read_table(tmp_path / "out" / "image_embeddings" / "0.parquet")
    write_table(embeddings.root(), "image_embeddings/0.parquet", table.drop_columns(["row"]))
    dest = tmp_path / layout
    export_all(str(tmp_path / "out"), str(dest), layout)
    if layout == "npz":
        rows = np.load(dest / "0.npz")["row"].tolist()
    elif layout == "lance":
        lancedb = pytest.importorskip("lancedb")
        found = lancedb.connect(dest).open_table("image_embeddings").to_arrow()
        rows = found["row"].to_pylist()
        assert found["meta_a_b"].to_pylist() == ["x"] * 3
    else:
        path = dest / "rows.parquet" if layout == "npy" else dest / "data" / "train-00000-of-00001.parquet"
        rows = pl.read_parquet(path)["row"].to_list()
    assert rows == [1, 3, 4]


def test_one_long_caption_takes_its_memory_once(tmp_path: Path) -> None:
    shard = finished_shard("0", embedded=50)
    captions = pa.array(["x" * 1_000_000, *["short"] * 51])
    shard = replace(shard, rows=shard.rows.set_column(1, "caption", captions))
    EmbeddingsIOManager(output_dir=str(tmp_path / "out")).commit(shard, {"dim": DIM})
    export_all(str(tmp_path / "out"), str(tmp_path / "npz"), "npz")
    assert (tmp_path / "npz" / "0.npz").stat().st_size < 1_000_000
    with np.load(tmp_path / "npz" / "0.npz") as archive:
        assert archive["caption"].tolist() == ["x" * 1000, *["short"] * 49]


def test_lance_is_searched_by_lancedb(output: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(exported(output, "lance")).open_table("image_embeddings")
    old = expected(output)
    assert table.count_rows() == 70
    found = table.search(vectors(old)[50]).limit(1).to_list()
    assert found[0]["key"] == old["key"][50]
    assert found[0]["meta_licence"] == "CC0"


def test_hf_datasets_loads_it(output: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(exported(output, "hf")), split="train", cache_dir=tmp_path / "cache")
    old = expected(output)
    assert found["key"][:] == old["key"].to_list()
    assert np.array_equal(np.array(found["embedding"][:], np.float32), vectors(old))


@pytest.mark.parametrize("layout", ["clip-retrieval", "npy", "npz", "lance", "hf"])
def test_export_from_s3_to_s3(layout: str, s3_env: Seaweed, tmp_path: Path) -> None:
    prefix = s3_env.new_prefix()
    commit(f"{prefix}/out")
    facts = export_all(f"{prefix}/out", f"{prefix}/{layout}", layout)
    assert facts["rows"] == 70
    dest = open_root(f"{prefix}/{layout}")
    names = [path.removeprefix(f"{dest.path}/") for path in dest.fs.find(dest.path)]
    assert "export.json" in names
    dest.fs.get(dest.path, str(tmp_path / "copy"), recursive=True)
    if layout == "npy":
        assert np.load(tmp_path / "copy" / "embeddings.npy").shape == (70, DIM)
    if layout == "npz":
        assert np.load(tmp_path / "copy" / "part" / "00001.npz")["embeddings"].shape == (40, DIM)
    if layout == "hf":
        assert len(pl.read_parquet(tmp_path / "copy" / "data" / "*.parquet")) == 70


def test_an_export_overwrites_and_mixes_nothing(output: Path) -> None:
    dest = exported(output, "npy")
    with pytest.raises(StorageError, match="is not empty"):
        export_all(str(output), str(dest), "npz")
    with pytest.raises(StorageError, match="Nothing is committed"):
        export_all(str(dest), str(output.with_name("other")), "npz")
    commit(str(output), dim=16, keys=("00009",))
    for layout in FORMATS:
        with pytest.raises(SettingsError, match=r"several kinds: .*00009"):
            export_all(str(output), str(output.with_name(f"mixed-{layout}")), layout)
