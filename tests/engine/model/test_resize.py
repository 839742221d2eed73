"""Images that the device resizes have the pixels of open_clip's preprocess; here the device is the CPU."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from boring_assets.engine.decoding.decode import DEVICE_RESIZE_PIXELS, Preprocess
from boring_assets.engine.decoding.decoders import Decoders, Target, decode_chunk
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.model import resize
from boring_assets.engine.model.resize import DeviceResize
from tests.engine.decoding.test_decode import SIZES, reference
from tests.engine.kinds import FAST, KINDS, sample

MODELS = [
    Preprocess(64, 64),
    Preprocess(224, 224),
    Preprocess(64, 64, resize_mode="longest", fill=90),
    Preprocess(64, 64, resize_mode="squash", interpolation="bilinear"),
    Preprocess(48, 80),
    Preprocess(80, 48, resize_mode="longest"),
]


def resized(images: list[bytes], preprocess: Preprocess, device: str) -> np.ndarray:
    """What the model gets, uint8 [n, height, width, 3]; all images can be decoded."""
    import torch

    target = Target(preprocess, keep_size=True)
    decoders = Decoders(1, target, Limits())
    pixels, answers = decode_chunk(images, [decoders.plan(image) for image in images], target, Limits())
    assert answers == [None] * len(images)
    size = (len(images), preprocess.height, preprocess.width, 3)
    out = torch.zeros(size, dtype=torch.uint8, device=device)
    DeviceResize(preprocess, out.device)(pixels.data.to(device), pixels.sizes, out)
    return out.cpu().numpy()


def differences(images: list[bytes], preprocess: Preprocess, device: str = "cpu") -> np.ndarray:
    """Differences from open_clip's pixels in levels, int64 [n, height, width, 3]."""
    wanted = np.stack([reference(image, preprocess) for image in images])
    return np.abs(resized(images, preprocess, device).astype(int) - wanted)


@pytest.mark.parametrize("preprocess", MODELS, ids=str)
def test_each_kind_and_size_is_within_two_levels(
    preprocess: Preprocess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several canvases, and in parts that have few weights."""
    monkeypatch.setattr(resize, "_CANVAS_PIXELS", 3 * 256 * 256)
    monkeypatch.setattr(resize, "_MOST_WEIGHTS", 10 * preprocess.height * 512)
    named = [(kind, size, sample(kind, *size)) for kind in KINDS for size in SIZES]
    found = differences([image for _, _, image in named], preprocess)
    for (kind, size, _), each in zip(named, found, strict=True):
        assert each.max() <= (2 if kind in FAST else 0), (kind, size)
    assert found.mean() < 0.05


def test_only_ordinary_jpegs_of_a_limited_size_keep_their_size() -> None:
    decoders = Decoders(1, Target(MODELS[0], keep_size=True), Limits())
    side = int(DEVICE_RESIZE_PIXELS**0.5)
    for kind in KINDS:
        wanted = (200, 300) if kind in FAST else (64, 64)
        assert decoders.plan(sample(kind, 300, 200)) == wanted, kind
    assert decoders.plan(sample("jpeg", side, side)) == (side, side)
    assert decoders.plan(sample("jpeg", side + 1, side)) == (64, 64)
    assert decoders.plan(sample("jpeg", 1030, 20)) == (64, 64)
    assert decoders.plan(b"<html>") == (64, 64)
    assert Decoders(1, Target(MODELS[0]), Limits()).plan(sample("jpeg", 300, 200)) == (64, 64)


def test_real_pictures_are_within_two_levels(shared_data: Path) -> None:
    images = []
    with tarfile.open(shared_data / "webdataset" / "00000.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                images.append(tar.extractfile(member).read())  # type: ignore[union-attr]
    found = differences(images, Preprocess(224, 224))
    assert found.max() <= 2
    assert found.mean() < 0.02
