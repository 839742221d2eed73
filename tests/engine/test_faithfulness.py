"""Embeddings of the whole pipeline against open_clip's own: its preprocess and its fp32 model."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import EmbeddedShard, embed_shards
from boring_assets.tiny import TINY_DIR, TINY_NAME
from tests.engine.kinds import KINDS, sample, shard_at
from tests.engine.resizing import ResizingEncoder

# The median and the worst cosine that are good enough.
GOOD = {"fp32": (0.9999, 0.999), "bf16": (0.999, 0.99), "int8": (0.999, 0.995)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Real downloads, where they are there, and each kind in several shapes."""
    made = {
        f"{kind} {width} x {height}": sample(kind, width, height)
        for kind in KINDS
        for width, height in [(90, 400), (256, 256)]
    }
    raw = Path(__file__).parents[3] / "shared" / "data" / "webdataset_raw" / "00000.tar"
    if raw.is_file():
        with tarfile.open(raw) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    made[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return made


@pytest.fixture(scope="module")
def expected(images: dict[str, bytes]) -> dict[str, np.ndarray]:
    """What open_clip gives for each image that it can read, float32 [dim]."""
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TINY_DIR}")
    model.eval()
    pixels = {}
    for name, data in images.items():
        try:
            with Image.open(io.BytesIO(data)) as image:
                pixels[name] = preprocess(image)
        except Exception:
            continue
    with torch.inference_mode():
        vectors = model.encode_image(torch.stack(list(pixels.values())), normalize=True).numpy()
    return dict(zip(pixels, vectors, strict=True))


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(Encoder, "fp32"), (Encoder, "bf16"), (Encoder, "int8"), (ResizingEncoder, "fp32")],
)
def test_embeddings_are_those_of_open_clip(
    images: dict[str, bytes],
    expected: dict[str, np.ndarray],
    kind: type[Encoder],
    precision: str,
    tmp_path: Path,
) -> None:
    table = pa.table({"key": list(images), "image": pa.array(list(images.values()), pa.binary())})
    pq.write_table(table, tmp_path / "00000.parquet")
    encoder = kind(load_model(TINY_NAME), device="cpu", precision=precision)
    (result,) = embed_shards([shard_at(tmp_path / "00000.parquet")], encoder)
    assert isinstance(result, EmbeddedShard)
    assert not isinstance(encoder, ResizingEncoder) or encoder.resized
    keys = list(images)
    assert [keys[row] for row in result.embedded] == list(expected)
    wanted = np.stack(list(expected.values()))
    assert np.allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)
    # The cosine could not tell images apart if the model gave all of them the same vector.
    assert np.percentile(wanted @ wanted.T, 10) < 0.9
    cosine = (result.embeddings * wanted).sum(axis=1)
    median, worst = GOOD[precision]
    assert np.median(cosine) >= median
    assert cosine.min() >= worst, list(expected)[int(cosine.argmin())]
