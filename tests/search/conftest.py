"""A dataset of pictures that boring-tiny was never trained on, embedded and indexed once for all."""

from pathlib import Path

import pytest

from boring_assets.tiny.pictures import all_combinations
from tests.command_line import CommandLine
from tests.search.dataset import jpeg, write_shard

HELD_OUT = [each for each in all_combinations() if each.held_out]
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=1</script>'


class Gallery:
    """An input, its output, and the command line over them."""

    def __init__(self, folder: Path) -> None:
        self.call = CommandLine(folder)
        self.input, self.output = folder / "input", folder / "output"
        images = [jpeg(each, 1_000_003 + number, 256) for number, each in enumerate(HELD_OUT)]
        captions = [each.caption for each in HELD_OUT]
        half = len(images) // 2
        write_shard(self.input / "00000.parquet", captions[:half], images[:half], width=list(range(half)))
        write_shard(
            self.input / "00001.parquet", captions[half:], images[half:], width=[-1] * (len(images) - half)
        )
        self.call("embed", self.input, self.output)
        self.call("index", "--output", self.output)

    @property
    def picture(self) -> bytes:
        """The first picture, encoded."""
        return jpeg(HELD_OUT[0], 1_000_003, 256)


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return Gallery(tmp_path_factory.mktemp("gallery"))
