"""open_clip is imported without torch's compiler, which still works for whoever wants it."""

import subprocess
import sys

import pytest

from tests.waiting import HANG_SECONDS

EMBED = """
import sys
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model

encoder = Encoder(load_model("boring-tiny"), "cpu", "fp32", 4)
"""
WITHOUT = 'assert not [name for name in sys.modules if name.startswith("torch._dynamo")]\n'
COMPILE = """
import torch, torchvision
visual = encoder.model.module.visual
images = torch.rand(2, 3, *encoder.size)
with torch.inference_mode():
    compiled = torch.compile(visual, backend="eager")
    assert torch.allclose(compiled(images), visual(images), atol=1e-4)
assert "torch._dynamo" in sys.modules
boxes = torch.tensor([[0, 0.0, 0, 4, 4]])
assert torchvision.ops.roi_align(torch.rand(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
"""
OTHER_VERSION = """
from boring_assets.engine.model import imports
def fail(*_, **__):
    raise AttributeError("a library asks for more")
imports._disable = fail
"""


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=HANG_SECONDS)


def test_a_model_embeds_without_the_compiler_and_compiles_later() -> None:
    run(EMBED + WITHOUT + COMPILE)


def test_a_library_that_needs_more_of_the_compiler_gets_it() -> None:
    run(OTHER_VERSION + EMBED + 'assert "torch._dynamo" in sys.modules\n' + COMPILE)


@pytest.mark.parametrize("first", ["import open_clip\n", "import torch._dynamo\n"])
def test_what_was_imported_before_stays(first: str) -> None:
    run(first + EMBED + 'assert "torch._dynamo" in sys.modules\n')
