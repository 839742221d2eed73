"""The output contract, on real img2dataset output and on sample data, and with the readers users have."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from boring_assets import __version__
from boring_assets.engine.decoding.decode import Limits, decode
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.samples import Failure, Shard
from boring_assets.output.schema import read_facts
from boring_assets.sample_data import write_sample_data
from resources.clip import ClipResource
from resources.source import ShardSource
from tests.assets.project import Project
from tests.conftest import SHARED_DATA

DIM = 64
FAILURES = pa.schema(
    {"row": pa.int64(), "key": pa.string(), "url": pa.string(), "reason": pa.string(), "detail": pa.string()}
)


@dataclass
class Embedded:
    """An input, and the project that embedded it."""

    name: str
    input: Path
    project: Project
    keys: list[str]

    def paths(self) -> list[str]:
        return [str(self.project.path(key)) for key in self.keys]


def embed(name: str, folder: Path, **settings: Any) -> Iterator[Embedded]:
    with pytest.MonkeyPatch.context() as patch:
        project = Project(folder / "home", patch, folder / "in", folder / "out", **settings)
        keys = project.register()
        outcome = project.run(keys[0], keys[-1])
        assert outcome.error == ""
        yield Embedded(name, folder / "in", project, keys)


@pytest.fixture(scope="module", params=["webdataset", "webdataset_raw", "sample files", "sample parquet"])
def embedded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("project")
    source, _, layout = request.param.partition(" ")
    if layout:
        write_sample_data(
            folder / "in" / "part-1", 1, 20, layout, encode_format="png", broken=4, image_size=64
        )
        write_sample_data(folder / "in", 1, 9, layout, broken=0, image_size=64, first_shard=7)
    elif (SHARED_DATA / source).is_dir():
        shutil.copytree(SHARED_DATA / source, folder / "in")
    else:
        pytest.skip(f"no real img2dataset output at {SHARED_DATA}")
    yield from embed(request.param, folder)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Two shards of 20 samples, 4 of them broken, for those who read the output."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample_data(folder / "in", 2, 20, "webdataset", broken=4, image_size=64)
    yield from embed("sample", folder)


def test_every_row_has_one_embedding_or_failure_in_order(embedded: Embedded) -> None:
    for key in embedded.keys:
        rows = pq.read_table(embedded.input / f"{key}.parquet").to_pylist()
        done = embedded.project.table(key)
        failed = embedded.project.table(key, "image_failures")
        assert failed.schema == FAILURES
        assert failed["row"].to_pylist() == sorted(set(failed["row"].to_pylist()))
        assert done.num_rows + failed.num_rows == len(rows)
        lost = {row["row"]: row for row in failed.to_pylist()}
        for number, row in lost.items():
            assert (row["key"], row["url"]) == (rows[number]["key"], rows[number]["url"])
            assert row["reason"] in ("not_downloaded", "decode_error", "missing_image", "too_large")
            assert row["detail"]
            if rows[number]["status"] != "success":
                assert row["reason"] == "not_downloaded"
                assert rows[number]["error_message"] in row["detail"]
        kept = [row for number, row in enumerate(rows) if number not in lost]
        assert done["key"].to_pylist() == [row["key"] for row in kept]
        for name in done.column_names:
            if name == "row":
                assert done[name].to_pylist() == [number for number in range(len(rows)) if number not in lost]
            elif name != "embedding":
                assert done[name].to_pylist() == [row[name.removeprefix("meta_")] for row in kept], name


def test_columns_types_and_order(embedded: Embedded) -> None:
    for key in embedded.keys:
        source = pq.read_schema(embedded.input / f"{key}.parquet")
        schema = pq.read_schema(embedded.project.path(key))
        assert schema.names[:5] == ["url", "key", "caption", "embedding", "row"]
        assert schema.field("row").type == pa.int64()
        assert [schema.field(name).type for name in schema.names[:3]] == [pa.string()] * 3
        assert all(field.nullable for field in schema)
        vector = schema.field("embedding").type
        assert pa.types.is_fixed_size_list(vector)
        assert (vector.list_size, vector.value_type) == (DIM, pa.float32())
        left_out = {"url", "key", "caption", "jpg", "png"}
        assert [(field.name, field.type) for field in schema][5:] == [
            (f"meta_{field.name}", field.type) for field in source if field.name not in left_out
        ]


def test_vectors_are_of_their_own_image_and_normalized(embedded: Embedded) -> None:
    key = embedded.keys[0]
    table = embedded.project.table(key)
    vectors = np.stack(table["embedding"].to_numpy())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(np.unique(vectors, axis=0)) > len(vectors) * 0.9

    settings = embedded.project.settings
    shard = ShardSource.from_settings(settings).find([key])[key]
    assert isinstance(shard, Shard)
    encoder = ClipResource(model="boring-tiny", device="cpu", precision="fp32").encoder()
    opened = open_shard(shard, Limits(), ShardSource.from_settings(settings).fetcher())
    images = dict(opened.images())
    by_key = {name: row for row, name in enumerate(opened.column("key"))}
    for number in range(0, table.num_rows, max(1, table.num_rows // 8)):
        image = images[by_key[table["key"][number].as_py()]]
        assert isinstance(image, bytes)
        pixels = decode(image, encoder.model.preprocess, Limits())
        assert not isinstance(pixels, Failure)
        alone = encoder.submit([pixels.unsqueeze(0)]).result()[0]
        assert float(alone @ vectors[number]) > 0.9999


def test_files_say_how_they_were_made(embedded: Embedded) -> None:
    for key in embedded.keys:
        path = embedded.project.path(key)
        facts = read_facts(pq.read_schema(path).metadata)
        shard = ShardSource.from_settings(embedded.project.settings).find([key])[key]
        assert isinstance(shard, Shard)
        done, failed = (embedded.project.table(key, f"image_{kind}") for kind in ("embeddings", "failures"))
        reasons = failed["reason"].to_pylist()
        expected = {
            "model": "boring-tiny",
            "pretrained": "",
            "precision": "fp32",
            "dim": DIM,
            "normalized": True,
            "dtype": "float32",
            "source_uri": f"file://{embedded.input}/{key}.parquet",
            "source_version": shard.version,
            "rows": done.num_rows + failed.num_rows,
            "embedded": done.num_rows,
            "failed": failed.num_rows,
            "failed_by_reason": {reason: reasons.count(reason) for reason in set(reasons)},
            "rows_left_out": 0,
            "boring_assets_version": __version__,
        }
        assert {name: facts[name] for name in expected} == expected
        assert len(str(facts["weights_digest"])) == 16
        assert facts["preprocess"]["mean"]  # type: ignore[index]


def test_metadata_json_adds_up(embedded: Embedded) -> None:
    totals = json.loads((Path(embedded.project.settings.output_dir) / "metadata.json").read_text())
    done = sum(embedded.project.table(key).num_rows for key in embedded.keys)
    failed = sum(embedded.project.table(key, "image_failures").num_rows for key in embedded.keys)
    assert (totals["num_samples"], totals["num_failed"]) == (done, failed)
    assert (totals["num_shards"], totals["dim"], totals["model"]) == (len(embedded.keys), DIM, "boring-tiny")
    assert totals["timestamp"].endswith("+00:00")
    real = {"webdataset": (571, 29), "webdataset_raw": (288, 12)}  # what Pillow decodes of it
    assert (done, failed) == real.get(embedded.name, (9 + 16, 4))


def test_nothing_else_is_left_in_the_output(embedded: Embedded) -> None:
    out = Path(embedded.project.settings.output_dir)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    kinds = ("image_embeddings", "image_failures")
    expected = {f"{kind}/{key}.parquet" for kind in kinds for key in embedded.keys}
    files = {name for name in files if not name.startswith(".counts/")}
    assert files == expected | {"metadata.json", ".boring_assets.json"}


# Those who read it.


def vector_of(sample: Embedded) -> list[float]:
    return sample.project.table("00001")["embedding"][3].as_py()  # type: ignore[no-any-return]


def test_polars(sample: Embedded) -> None:
    for frame in (pl.read_parquet(sample.paths()), pl.scan_parquet(sample.paths()).collect()):
        assert frame.shape == (32, 13)
        assert frame.schema["embedding"] == pl.Array(pl.Float32, DIM)
        assert frame["embedding"][16 + 3].to_list() == vector_of(sample)


def test_duckdb(sample: Embedded) -> None:
    import duckdb

    folder = sample.project.path("*").parent
    with duckdb.connect() as database:
        (best,) = database.execute(
            f"SELECT key, list_cosine_similarity(embedding, $1::FLOAT[{DIM}]) AS score "
            f"FROM read_parquet('{folder}/*.parquet') ORDER BY score DESC LIMIT 1",
            [vector_of(sample)],
        ).fetchall()
        database.register("arrow", ds.dataset(folder))
        kind = database.execute("SELECT DISTINCT typeof(embedding) FROM arrow").fetchall()
    assert best[0] == sample.project.table("00001")["key"][3].as_py()
    assert best[1] == pytest.approx(1, abs=1e-5)
    assert kind == [(f"FLOAT[{DIM}]",)]


def test_pandas(sample: Embedded) -> None:
    import pandas

    frame = pandas.read_parquet(sample.project.path("00001"))
    assert frame["embedding"][3].tolist() == vector_of(sample)
    assert frame["embedding"][3].dtype == np.float32


def test_hugging_face_datasets(sample: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=sample.paths(), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == 32
    assert loaded.features["embedding"].length == DIM
    assert loaded[16 + 3]["embedding"] == vector_of(sample)
    assert loaded.with_format("numpy")[19]["embedding"].shape == (DIM,)


def test_lancedb(sample: Embedded, tmp_path: Path) -> None:
    import lancedb

    rows = ds.dataset(sample.paths()).to_table()
    table = lancedb.connect(tmp_path / "lance").create_table("images", rows)
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)
    (best,) = table.search(vector_of(sample), vector_column_name="embedding").limit(1).to_list()
    assert best["key"] == sample.project.table("00001")["key"][3].as_py()
    assert best["_distance"] == pytest.approx(0, abs=1e-5)


def test_arrow_datasets_and_a_matrix_for_faiss(sample: Embedded) -> None:
    rows = ds.dataset(sample.project.path("00000").parent).to_table(columns=["key", "embedding"])
    assert pa.types.is_fixed_size_list(rows.schema.field("embedding").type)
    matrix = rows["embedding"].combine_chunks().values.to_numpy(zero_copy_only=True).reshape(-1, DIM)
    assert matrix.dtype == np.float32
    assert matrix[16 + 3].tolist() == vector_of(sample)


# Special cases.


def test_float16_on_request(sample: Embedded, tmp_path: Path) -> None:
    (half,) = embed_again(sample, tmp_path, output_dtype="float16")
    for key in sample.keys:
        table = half.table(key)
        assert table.schema.field("embedding").type.value_type == pa.float16()
        assert read_facts(table.schema.metadata)["dtype"] == "float16"
        full = np.stack(sample.project.table(key)["embedding"].to_numpy())
        assert np.array_equal(np.stack(table["embedding"].to_numpy()), full.astype(np.float16))
        assert half.path(key).stat().st_size < sample.project.path(key).stat().st_size


def embed_again(sample: Embedded, folder: Path, **settings: Any) -> Iterator[Project]:
    shutil.copytree(sample.input, folder / "in")
    for again in embed("again", folder, **settings):
        yield again.project


def test_shards_with_no_or_only_failures_have_both_files(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "in", 1, 6, "webdataset", broken=6, image_size=32)
    write_sample_data(tmp_path / "in", 1, 6, "webdataset", broken=0, image_size=32, first_shard=1)
    for done in embed("both", tmp_path):
        none, whole = (done.project.table(key) for key in ("00000", "00001"))
        assert (none.num_rows, whole.num_rows) == (0, 6)
        assert none.schema.equals(whole.schema, check_metadata=False)
        assert pl.read_parquet(done.paths()).height == 6
        failed, nothing = (done.project.table(key, "image_failures") for key in ("00000", "00001"))
        assert failed["row"].to_pylist() == list(range(6))
        assert (nothing.num_rows, nothing.schema) == (0, FAILURES)


def test_a_shard_of_nothing_but_images(tmp_path: Path) -> None:
    (path,) = write_sample_data(tmp_path / "in", 1, 5, "parquet", broken=1, image_size=32)
    pq.write_table(pq.read_table(path, columns=["jpg"]), path)
    for done in embed("bare", tmp_path):
        table = done.project.table("00000")
        assert table.column_names == ["url", "key", "caption", "embedding", "row"]
        assert [table[name].null_count for name in table.column_names] == [4, 4, 4, 0, 0]
        (failed,) = done.project.table("00000", "image_failures").to_pylist()
        assert (failed["key"], failed["url"], failed["reason"]) == (None, None, "missing_image")
