"""HEIC and JPEG XL: off by default, on by a setting, within the same limits."""

import io
import struct

import pytest
from PIL import Image

from boring_assets.engine.decoding.decode import Preprocess, decode
from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.decoding.pillow import check_formats
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import SettingsError
from tests.engine.kinds import encoded, picture

FORMATS = {"HEIC": "HEIF", "JXL": "JXL"}


def image_of(kind: str, size: tuple[int, int] = (300, 200)) -> bytes:
    check_formats([kind])
    return encoded(picture(*size), FORMATS[kind])


@pytest.mark.parametrize(("kind", "extra"), [("HEIC", "heic"), ("JXL", "jxl")])
def test_a_format_that_is_off_names_the_setting_and_the_extra(kind: str, extra: str) -> None:
    answer = decode(image_of(kind), Preprocess(64, 64), Limits())
    assert isinstance(answer, Failure)
    assert answer.reason is Reason.DECODE_ERROR
    assert f"BORING_EXTRA_IMAGE_FORMATS={FORMATS[kind]}" in answer.detail
    assert f'pip install "boring_assets[{extra}]"' in answer.detail


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_that_is_on_is_decoded_within_the_limits(kind: str) -> None:
    data, formats = image_of(kind), check_formats([kind])
    pixels = decode(data, Preprocess(64, 64), Limits(extra_formats=formats))
    assert not isinstance(pixels, Failure), pixels
    reference = decode(encoded(picture(300, 200), "PNG"), Preprocess(64, 64), Limits())
    assert (pixels.float() - reference.float()).abs().mean() < 6  # type: ignore[union-attr]
    answer = decode(data, Preprocess(64, 64), Limits(pixels=300 * 200 - 1, extra_formats=formats))
    assert isinstance(answer, Failure)
    assert answer.reason is Reason.TOO_LARGE, answer
    broken = decode(data[: len(data) // 2], Preprocess(64, 64), Limits(extra_formats=formats))
    assert isinstance(broken, Failure)


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (256, 8), (1000, 1), (3, 700), (1280, 720)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int], container: bool) -> None:
    check_formats(["JXL"])
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "JXL", use_container=container)
    answer = decode(
        out.getvalue(), Preprocess(8, 8), Limits(pixels=size[0] * size[1] - 1, extra_formats=("JXL",))
    )
    assert isinstance(answer, Failure)
    assert answer.reason is Reason.TOO_LARGE
    assert f"{size[0]} x {size[1]} pixels" in answer.detail


def test_a_heic_with_a_false_size_is_not_decoded() -> None:
    data = image_of("HEIC", (400, 400))
    start = data.index(b"ispe") + 8
    small = data[:start] + struct.pack(">II", 64, 64) + data[start + 8 :]
    answer = decode(small, Preprocess(8, 8), Limits(pixels=100_000, extra_formats=("HEIF",)))
    assert isinstance(answer, Failure)
    assert "limit" in answer.detail.lower()


def test_names_of_formats() -> None:
    assert check_formats(["heic", "jpegxl", "jp2"]) == ("HEIF", "JXL", "JPEG2000")
    with pytest.raises(SettingsError, match="Pillow does not read"):
        check_formats(["docx"])
