"""The engine as a function from images to answers."""

import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.embedder import Embedder
from boring_assets.sample_data import write_sample_data


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    (parquet,) = write_sample_data(tmp_path_factory.mktemp("images"), 1, 40, "parquet", image_size=48)
    return pq.read_table(parquet)["jpg"].to_pylist()


def test_an_embedding_does_not_depend_on_the_rest_of_the_batch(images: list[bytes]) -> None:
    embedder = Embedder(
        "boring-tiny", device="cpu", precision="fp32", batch_size=8, limits=Limits(bytes=50_000)
    )
    alone = np.stack([embedder.embed([image])[0].embedding for image in images])
    assert alone.shape == (40, embedder.dim)
    assert embedder.embed([]) == []

    mixed: list[bytes | None] = list(images)
    bad = {0: None, 7: b"", 8: b"no image", 20: b"\xff" * 60_000, 41: images[3][:200]}
    for at, what in bad.items():
        mixed.insert(at, what)
    mixed += [None] * 20  # a batch of nothing but failures
    answers = embedder.embed(mixed)
    assert len(answers) == len(mixed)
    failed = {at: answer.reason for at, answer in enumerate(answers) if answer.reason}
    reasons = ["missing_image", "missing_image", "decode_error", "too_large", "decode_error"]
    assert failed == dict(zip(bad, reasons, strict=True)) | dict.fromkeys(range(45, 65), "missing_image")
    assert all(answers[at].detail and answers[at].embedding is None for at in failed)
    there = np.stack([answer.embedding for answer in answers if answer.embedding is not None])
    assert np.einsum("nd,nd->n", there, alone).min() > 0.99999


def test_threads_take_turns(images: list[bytes]) -> None:
    embedder = Embedder("boring-tiny", device="cpu", precision="fp32", batch_size=4)
    expected = [answer.embedding for answer in embedder.embed(images)]
    got: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda part=part: got.update({part: embedder.embed(images[part::4])}))
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in range(4):
        for answer, vector in zip(got[part], expected[part::4], strict=True):
            assert np.allclose(answer.embedding, vector, atol=1e-5)
