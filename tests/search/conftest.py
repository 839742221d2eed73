"""A dataset of pictures that boring-tiny was never trained on, embedded and indexed once for all."""

import http.client
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boring_assets.tiny.pictures import all_combinations
from tests.command_line import CommandLine
from tests.search.dataset import jpeg, write_shard
from tests.waiting import HANG_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


class Server:
    """A running `boring-assets serve` or `map`."""

    def __init__(self, call: CommandLine, command: str, *arguments: object) -> None:
        self._process = call.start(command, "--port", 0, *arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        lines = iter(self._process.stdout.readline, b"")
        found = next(filter(None, (re.search(r"http://([\d.]+):(\d+)", line.decode()) for line in lines)))
        self.host, self.port = found[1], int(found[2])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=HANG_SECONDS)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=HANG_SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()
