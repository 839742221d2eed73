"""A copy of the project in which the commands of the documents run as a reader would run them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from boring_assets.sample_data import write_sample_data
from tests.docs.pages import PROJECT
from tests.docs.warm import CLIENT
from tests.e2e.processes import running
from tests.seaweed import Seaweed
from tests.waiting import HANG_SECONDS, wait_for

# What the documents say, and what stands for it here: no test downloads weights, or embeds a hundred shards.
INSTEAD = {"ViT-B-32": "boring-tiny", '_end": "00099"': '_end": "00003"'}
_WARM = ("boring-assets", "dagster", "python")
_LINKS = (
    "boring_assets",
    "partitions",
    "resources",
    "deploy",
    "Makefile",
    "constraints.txt",
    "dagster.yaml",
    "pyproject.toml",
    "workspace.yaml",
)
# `pip` is asked what it would install: an extra that there is, held to the versions that there are.
_PIP = """\
import re, sys, tomllib
extras = tomllib.load(open({pyproject!r}, "rb"))["project"]["optional-dependencies"]
arguments = sys.argv[1:]
assert arguments.pop(0) == "install", sys.argv
if "-c" in arguments:
    at = arguments.index("-c")
    assert open(arguments[at + 1]).read().count("==") > 50
    del arguments[at : at + 2]
for one in arguments:
    if one != "-e":
        found = re.fullmatch(r"(?:\\.|boring_assets)\\[([\\w,]+)\\]", one)
        assert found and set(found[1].split(",")) <= extras.keys(), one
"""


class Workspace:
    """The folder, its environment, and `.venv/bin` with the programs of a reader."""

    def __init__(self, folder: Path, s3: Seaweed) -> None:
        self.folder = folder / "boring_assets"
        self._address = str(folder / "warm.sock")
        self._log = folder / "warm.txt"
        self._bin = self.folder / ".venv" / "bin"
        self._bin.mkdir(parents=True)
        for name in _LINKS:
            (self.folder / name).symlink_to(PROJECT / name)
        for name in ("installed", "installed-test"):  # the Makefile's marks
            (self.folder / ".venv" / name).touch()
        for name in _WARM:
            self._program(name, CLIENT.format(address=self._address))
        self._program("pip", _PIP.format(pyproject=str(PROJECT / "pyproject.toml")))
        self.env = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(PROJECT),
            "BORING_MODEL": "boring-tiny",
            **s3.env,
        }
        self._fill(s3, folder / "laion")

    def _program(self, name: str, text: str) -> None:
        path = self._bin / name
        path.write_text(f"#!{sys.executable} -IS\n{text}")
        path.chmod(0o755)

    def _fill(self, s3: Seaweed, folder: Path) -> None:
        """What a reader has: a bucket with shards and one with pictures, and a picture at hand."""
        fs = s3.filesystem()
        fs.mkdir("bucket")
        write_sample_data(folder, 4, 8, "webdataset", broken=2, image_size=64)
        fs.put(f"{folder}/", "bucket/laion/", recursive=True)
        pictures = folder.parent / "pictures"
        write_sample_data(pictures, 1, 4, "files", image_size=64)
        shown = sorted((pictures / "00000").glob("*.jpg"))
        for path in shown:
            fs.put(str(path), f"bucket/pictures/{path.name}")
        (self.folder / "photo.jpg").write_bytes(shown[0].read_bytes())

    @contextmanager
    def warm(self) -> Iterator[None]:
        """Keeps the server of programs running."""
        command = [sys.executable, "-m", "tests.docs.warm", self._address]
        with running(command, self._log, os.environ | {"PYTHONPATH": str(PROJECT)}):
            wait_for(Path(self._address).exists, "the libraries are imported")
            yield

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a script of bash in the folder; both streams come as one."""
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * HANG_SECONDS,
            check=False,
        )
