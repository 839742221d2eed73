"""The encoder and the pipeline on a real CUDA device; skipped, with the reason, where there is none."""

from pathlib import Path

import fsspec
import numpy as np
import pytest

from boring_assets.engine.decoding.decode import Preprocess
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import ClipModel, load_model
from boring_assets.engine.pipeline import EmbeddedShard, Options, embed_shards
from boring_assets.engine.samples import Shard
from boring_assets.sample_data import write_sample_data
from boring_assets.tiny import TINY_NAME
from tests.engine.decoding.test_decode import SIZES
from tests.engine.kinds import FAST, KINDS, sample
from tests.engine.model.test_resize import MODELS, differences


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not _has_cuda(), reason="this machine has no CUDA device")]


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (some * others).sum(axis=1)


@pytest.mark.parametrize(("precision", "median", "worst"), [("fp32", 0.9999, 0.999), ("bf16", 0.999, 0.99)])
@pytest.mark.parametrize("workers", [2, 6])
def test_cuda_gives_what_the_cpu_gives(
    tmp_path: Path, precision: str, median: float, worst: float, workers: int
) -> None:
    """Three shards that share batches, partial last batches, several batches in flight."""
    shards = []
    for path in write_sample_data(tmp_path, 3, 150, "webdataset", broken=4, image_size=96):
        fs = fsspec.filesystem("file")
        shards.append(Shard(path.stem, path.as_uri(), fs, str(path), str(tmp_path), "1"))
    embeddings = {}
    for device, kind in (("cpu", "fp32"), ("cuda", precision)):
        encoder = Encoder(load_model(TINY_NAME), device, kind, 32)
        results = list(embed_shards(shards, encoder, Options(decode_workers=workers)))
        assert all(isinstance(one, EmbeddedShard) and len(one.embedded) == 146 for one in results)
        results.sort(key=lambda result: result.shard.key)  # several processes finish shards in any order
        embeddings[device] = np.concatenate([one.embeddings for one in results])  # type: ignore[union-attr]
    found = cosines(embeddings["cpu"], embeddings["cuda"])
    assert np.median(found) >= median
    assert found.min() >= worst


@pytest.mark.parametrize("preprocess", MODELS, ids=str)
def test_cuda_resizes_as_pillow_does(preprocess: Preprocess) -> None:
    """With TF32, whose products are less exact; in batches of one size and of many."""
    named = [(kind, size, sample(kind, *size)) for kind in KINDS for size in SIZES]
    found = differences([image for _, _, image in named], preprocess, "cuda")
    for (kind, size, _), each in zip(named, found, strict=True):
        assert each.max() <= (2 if kind in FAST else 0), (kind, size)
    assert found.mean() < 0.05
    same = differences([sample("jpeg", 256, 256)] * 70, preprocess, "cuda")
    assert same.max() <= 2


def test_memory_that_runs_out_makes_the_batch_smaller() -> None:
    import open_clip
    import torch

    module = open_clip.create_model("ViT-B-32", pretrained_text=False).eval().requires_grad_(False)
    model = ClipModel("ViT-B-32", "random", "", module, Preprocess.of(module.visual.preprocess_cfg))
    encoder = Encoder(model, "cuda", "fp32", 8192)
    pixels = Pixels.of_images(torch.randint(0, 256, (3000, 224, 224, 3), dtype=torch.uint8))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / total)
    try:
        vectors = encoder.submit([pixels[:1000], pixels[1000:]]).result()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= encoder.batch_size < 3000
    assert vectors.shape == (3000, 512)
    few = encoder.submit([pixels[1234:1236]]).result()
    assert cosines(vectors[1234:1236], few).min() > 0.9999


def test_auto_finds_a_batch_size_and_a_precision() -> None:
    encoder = Encoder(load_model(TINY_NAME))
    assert encoder.device.type == "cuda"
    assert encoder.batch_size in (64, 128, 256, 512, 1024)
    assert encoder.precision in ("bf16", "fp32")
