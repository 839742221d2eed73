"""Heads over committed embeddings: zero-shot labels, models from files, and what is computed again."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from boring_assets.datasets import Dataset
from boring_assets.errors import SettingsError
from boring_assets.parts import register_shards
from boring_assets.sample_data import write_sample_data
from boring_assets.search.query import Searcher
from boring_assets.settings import Settings, load_settings
from boring_assets.storage.root import open_root
from boring_assets.tiny.pictures import COLOURS, OUTLINES
from resources.source import ShardSource
from tests.command_line import CommandLine
from tests.test_component import QUIET, component

SHOTS = f"""
[heads.colour]
labels = {list(COLOURS)}
templates = ["a {{}} shape"]

[heads.shape]
labels = {list(OUTLINES)}
templates = ["a {{}}", "one red {{}} on a white background"]
"""


class Labelled:
    """An output of 200 sample pictures in two shards, and a settings file for it."""

    def __init__(self, folder: Path) -> None:
        self.call = CommandLine(folder)
        self.input = self.call.sample_data("in", "--image-size", 96, samples=100)
        self.output = folder / "out"
        self.config = folder / "settings.toml"
        self.call("embed", self.input, self.output, "--quiet-seconds", 0)

    def label(self, heads: str, code: int = 0, **env: str) -> str:
        self.config.write_text(heads)
        done = self.call("label", self.output, "--config", self.config, code=code, **env)
        return done.stdout + done.stderr

    def table(self, folder: str = "image_labels") -> pl.DataFrame:
        return pl.read_parquet(self.output / folder / "*.parquet")

    def files(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.output / "image_labels").iterdir()}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    return Labelled(tmp_path_factory.mktemp("labels"))


def word(captions: pl.Series, words: Any, at: int) -> np.ndarray:
    """The word of `words` that each caption has in a place: `two red crosses on a blue background`."""
    found = [caption.split()[at] for caption in captions]
    return np.array([next(each for each in words if text.startswith(each)) for text in found])


def test_zero_shot_labels_200_pictures_by_colour_and_by_shape(labelled: Labelled) -> None:
    assert "2 shards labelled" in labelled.label(SHOTS)
    images, labels = labelled.table("image_embeddings"), labelled.table()
    assert labels.select("row", "key").equals(images.select("row", "key"))
    assert labels.columns == ["row", "key", "colour", "colour_score", "shape", "shape_score"]
    assert len(labels) == 200
    assert (labels["colour"].to_numpy() == word(images["caption"], COLOURS, 1)).mean() >= 0.9
    assert (labels["shape"].to_numpy() == word(images["caption"], OUTLINES, 2)).mean() >= 0.9
    assert labels["colour_score"].is_between(1 / len(COLOURS), 1).all()

    before = labelled.files()
    labelled.label(SHOTS)
    assert labelled.files() == before, "what is up to date is left alone"


def test_a_trained_head_is_found_through_its_file_and_computed_alone(labelled: Labelled) -> None:
    labelled.label(SHOTS)
    before = labelled.table()
    images = labelled.table("image_embeddings")
    vectors = images["embedding"].to_numpy()
    red = (word(images["caption"], COLOURS, 1) == "red").astype(np.float32)
    weight, bias = trained(vectors, red)
    file = labelled.output.with_name("red.safetensors")
    save_file({"weight": weight[None], "bias": bias}, file, metadata={"model": "boring-tiny"})
    with_red = f'{SHOTS}\n[heads.red]\nweights = "{file}"\n'
    # There is no such model: this would fail if a zero-shot head were computed again.
    labelled.label(with_red, BORING_MODEL="no-such-model")
    after = labelled.table()
    assert after.select(before.columns).equals(before)
    np.testing.assert_allclose(after["red"], vectors @ weight + bias, atol=1e-5)
    assert ((after["red"] > 0.5).to_numpy() == (red > 0)).mean() > 0.97

    fewer = SHOTS.partition("[heads.shape]")[0]
    labelled.label(fewer, BORING_MODEL="no-such-model")
    assert labelled.table().equals(before.drop("shape", "shape_score"))


def trained(vectors: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a ridge regression."""
    inputs = np.hstack([vectors, np.ones((len(vectors), 1), np.float32)])
    solved = np.linalg.solve(inputs.T @ inputs + 0.01 * np.eye(inputs.shape[1]), inputs.T @ wanted)
    return solved[:-1].astype(np.float32), solved[-1:].astype(np.float32)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_an_mlp_gives_what_torch_gives(labelled: Labelled, activation: str) -> None:
    import torch

    vectors = labelled.table("image_embeddings")["embedding"].to_numpy()
    between = [torch.nn.ReLU() if activation == "relu" else torch.nn.Dropout(0.2)]
    layers = torch.nn.Sequential(
        torch.nn.Linear(vectors.shape[1], 64), *between, torch.nn.Linear(64, 16), *between,
        torch.nn.Linear(16, 3),
    )  # fmt: skip
    tensors = {f"layers.{name}": tensor.numpy() for name, tensor in layers.state_dict().items()}
    file = labelled.output.with_name(f"{activation}.safetensors")
    save_file(tensors, file)
    head = f'[heads.kind]\nweights = "{file}"\nlabels = ["a", "b", "c"]\nactivation = "{activation}"\n'
    labelled.label(head)
    found = labelled.table()
    with torch.no_grad():
        odds, best = layers.eval()(torch.tensor(vectors)).softmax(dim=1).max(dim=1)
    assert found["kind"].to_list() == ["abc"[number] for number in best]
    np.testing.assert_allclose(found["kind_score"], odds.numpy(), atol=1e-5)


def test_labels_are_in_the_index_and_in_its_filters(labelled: Labelled) -> None:
    pytest.importorskip("lancedb")
    labelled.label(SHOTS)
    labelled.call("clip-scores", labelled.output)
    labelled.call("index", labelled.output)
    searcher = Searcher(Settings(), open_root(str(labelled.output)))
    wanted = labelled.table()
    joined = {(hit.partition, hit.row): hit.meta for hit in searcher.sample(limit=200)}
    assert len(joined) == 200
    for key in ("00000", "00001"):
        rows = pl.read_parquet(labelled.output / "image_labels" / f"{key}.parquet")
        scores = pl.read_parquet(labelled.output / "clip_scores" / f"{key}.parquet")["clip_score"]
        for row, score in zip(rows.to_dicts(), scores, strict=True):
            meta = joined[key, row["row"]]
            assert (meta["colour"], meta["shape"]) == (row["colour"], row["shape"])
            assert meta["clip_score"] == pytest.approx(score)
    reds = wanted.filter(pl.col("colour") == "red", pl.col("shape") == "circle")
    found = searcher.sample(limit=200, where="colour = 'red' AND shape = 'circle'")
    assert sorted(hit.key or "" for hit in found) == sorted(reds["key"])
    counts = dict(searcher.count_values("colour"))
    assert counts == dict(wanted["colour"].value_counts().rows())

    # A head that is new or gone is so in the index after its next update, each row once.
    labelled.label(SHOTS.replace("heads.shape", "heads.form"))
    before = searcher.count()
    labelled.call("index", labelled.output)
    searcher.refresh()
    assert searcher.count() == before == 200
    assert dict(searcher.count_values("form")) == dict(wanted["shape"].value_counts().rows())
    assert "shape" not in searcher.columns


def test_a_shard_that_is_embedded_again_is_labelled_again(tmp_path: Path) -> None:
    call = CommandLine(tmp_path)
    data = call.sample_data("in", samples=8)
    config = tmp_path / "settings.toml"
    config.write_text(SHOTS)
    call("embed", data, tmp_path / "out", "--quiet-seconds", 0)
    call("label", tmp_path / "out", "--config", config)
    call.sample_data("in", "--seed", 5, shards=1, samples=6)
    call("embed", data, tmp_path / "out", "--quiet-seconds", 0)
    before = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out" / "image_labels").iterdir()}
    del call.env["BORING_MODEL"]  # the output names the model
    call("label", tmp_path / "out", "--config", config)
    after = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out" / "image_labels").iterdir()}
    assert (after["00000"] != before["00000"], after["00001"] == before["00001"]) == (True, True)
    assert len(pl.read_parquet(tmp_path / "out" / "image_labels" / "00000.parquet")) == 6


def test_a_head_that_does_not_fit_is_refused(labelled: Labelled) -> None:
    def head(name: str, metadata: dict[str, str] | None = None, **tensors: np.ndarray) -> str:
        file = labelled.output.with_name(f"{name}.safetensors")
        save_file(tensors, file, metadata=metadata)
        return f'[heads.own]\nweights = "{file}"\n'

    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, np.float32)

    (vector, *_) = labelled.table("image_embeddings")["embedding"]
    dim = len(vector)
    cases: list[tuple[str, str]] = [
        (head("other", weight=ones(1, 768)), f"takes embeddings of 768 numbers, .* have {dim}"),
        (head("large", {"model": "ViT-L-14"}, weight=ones(1, dim)), "is for the model ViT-L-14, but"),
        (f'{head("fits", weight=ones(1, dim))}model = "ViT-B-32"\n', "is for the model ViT-B-32, but"),
        (head("many", weight=ones(3, dim)), "has 3 outputs, but 0 labels"),
        (head("conv", weight=ones(3, 3, 2)), "tensor weight of shape"),
        (head("named", table=ones(3, dim)), "tensor table of shape"),
        (head("bias", bias=ones(3)), "holds bias. Expected"),
        ("[heads.own]\nweights = '/nowhere/head.safetensors'\n", "/nowhere/head.safetensors"),
        ("", "BORING_HEADS is empty"),
        ("[heads.own]\nlabels = ['a']\n", r"BORING_HEADS \(own\): a head needs .* at least two `labels`"),
        ("[heads.own]\nlabls = ['a']\n", r"BORING_HEADS \(own.labls\): expected no entry of that name"),
        ("[heads.own]\nweights = 'https://me:secret@host/x'\n", r"\(own.weights\): it holds credentials"),
        ("[heads.url]\nlabels = ['a', 'b']\n", "name of another column"),
        ("[heads.own]\nlabels = ['a', 'b']\ntemplates = ['x']\n", "must have one `.{2}`"),
    ]
    for heads, said in cases:
        text = " ".join(labelled.label(heads, code=1).split())
        assert pl.Series([text]).str.contains(said).all(), (said, text)


def test_a_component_with_heads_labels_in_the_run_that_embeds(tmp_path: Path) -> None:
    names = Dataset("laion", shares_location=True)
    labels = names.asset("image_labels")
    assert labels not in component(tmp_path, dataset="laion").resolve_asset_graph().get_all_asset_keys()

    write_sample_data(tmp_path / "in", 2, 6, "webdataset", image_size=32)
    defs = component(tmp_path, dataset="laion", heads={"kind": {"labels": ["circle", "square"]}})
    instance = dg.DagsterInstance.ephemeral()
    settings = Settings(input_dir=str(tmp_path / "in"), dataset="laion")
    register_shards(instance, ShardSource.from_settings(settings).discover(), settings)
    job = defs.resolve_implicit_job_def_def_for_assets([names.embeddings, labels])
    assert job is not None
    done = job.execute_in_process(
        instance=instance,
        asset_selection=[names.embeddings, labels],
        run_config=QUIET,
        tags={"dagster/asset_partition_range_start": "00000", "dagster/asset_partition_range_end": "00001"},
    )
    events = done.asset_materializations_for_node("laion__image_labels")
    assert [event.partition for event in events] == ["00000", "00001"]
    for event in events:
        found = pl.read_parquet(tmp_path / "out" / "image_labels" / f"{event.partition}.parquet")
        counts = [f"{label} {count}" for label, count in found["kind"].value_counts().rows()]
        assert sorted(str(event.metadata["kind"].value).split(", ")) == sorted(counts)
        assert event.metadata["dagster/partition_row_count"].value == len(found) == 6


def test_heads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORING_HEADS", '{"animal": {"labels": ["cat", "dog"]}}')
    assert load_settings().heads["animal"].labels == ("cat", "dog")
    monkeypatch.setenv("BORING_HEADS", "animal")
    with pytest.raises(SettingsError, match="BORING_HEADS: it is not JSON"):
        load_settings()
