"""The model as a resource: loaded when it is asked for, once, and refused with the setting's name."""

import subprocess
import sys
from typing import Any

import pytest

from boring_assets.errors import ModelError, SettingsError
from resources.clip import ClipResource
from tests.waiting import HANG_SECONDS


def test_definitions_load_without_the_gpu_stack() -> None:
    code = """
import sys
from boring_assets.definitions import defs
defs.get_repository_def().load_all_definitions()
print(sorted({"torch", "torchvision", "open_clip", "openvino"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_model_is_loaded_once_a_process_for_the_same_settings() -> None:
    fixed = {"model": "boring-tiny", "device": "cpu", "precision": "fp32"}
    first = ClipResource(batch_size=4, **fixed).encoder()
    assert (first.batch_size, first.precision, str(first.device)) == (4, "fp32", "cpu")
    assert ClipResource(batch_size="4", decode_workers=3, **fixed).encoder() is first
    other = ClipResource(batch_size="auto", **fixed).encoder()
    assert other is not first
    assert other.batch_size > 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "BORING_BATCH_SIZE .* is 0. .*`auto`"),
        ({"batch_size": "x"}, "BORING_BATCH_SIZE .* 'x'"),
        ({"batch_size": -1}, "BORING_BATCH_SIZE .* is -1"),
        ({"batch_size": ""}, "BORING_BATCH_SIZE .* ''"),
        ({"precision": "x"}, "BORING_PRECISION .* 'x'. .*bf16"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        ClipResource(model="boring-tiny", **settings).encoder()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(ModelError, match=f"BORING_DEVICE is '{device}'"):
        ClipResource(model="boring-tiny", device=device).encoder()


def test_cuda_without_cuda() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match="BORING_DEVICE is 'cuda', but this machine shows 0 CUDA devices"):
        ClipResource(model="boring-tiny", device="cuda").encoder()


def test_options_follow_the_settings() -> None:
    clip = ClipResource(decode_workers=3, read_ahead_mb=7, max_image_pixels=10, max_image_bytes=20)
    options = clip.options(max_rows=5)
    assert (options.decode_workers, options.read_ahead_bytes, options.max_rows) == (3, 7 * 2**20, 5)
    assert (options.limits.pixels, options.limits.bytes) == (10, 20)
    assert ClipResource().options().decode_workers >= 1
    clip = ClipResource(
        max_image_seconds=2, extra_image_formats=["ico", "JPEG2000"], max_shard_rows=3, max_shard_mb=4
    )
    limits = clip.options().limits
    assert (limits.seconds, limits.extra_formats) == (2, ("ICO", "JPEG2000"))
    assert (limits.shard_rows, limits.shard_bytes) == (3, 4 * 2**20)


def test_an_image_format_that_pillow_lacks_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"BORING_EXTRA_IMAGE_FORMATS names 'JPG'.*JPEG2000"):
        ClipResource(extra_image_formats=["JPG"]).options()
