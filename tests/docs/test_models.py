"""The models that the documents name, held against open_clip's own tables."""

import re
from pathlib import PurePosixPath

from tests.docs.pages import PROJECT, pages

TEXT = "\n".join((PROJECT / page).read_text() for page in pages())
# As options, as lines of a settings file, and in the sentence on the default.
PAIRS = {
    *re.findall(r"--model (\S+) --pretrained (\S+)", TEXT),
    *re.findall(r'^model = "(\S+)"\npretrained = "(\S+)"', TEXT, re.MULTILINE),
    *re.findall(r"`([\w-]+)`, the default, takes the tag `(\S+)`", TEXT),
}


def test_each_tag_is_one_of_its_model() -> None:
    import open_clip

    assert len(PAIRS) > 2
    assert {model for model, _ in PAIRS} <= set(open_clip.list_models())
    tags = {pair for pair in PAIRS if not PurePosixPath(pair[1]).suffix}  # the others are files
    assert tags <= set(open_clip.list_pretrained())


def test_each_model_of_the_hub_is_one_that_open_clip_takes_from_there() -> None:
    import open_clip

    known = {
        open_clip.get_pretrained_cfg(*pair).get("hf_hub", "").rstrip("/")
        for pair in open_clip.list_pretrained()
    }
    named = set(re.findall(r"hf-hub:(\w[\w./-]*\w)", TEXT)) - {"org/name"}
    assert named
    assert named <= known
