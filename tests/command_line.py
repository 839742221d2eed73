"""The command line for a test: called in this process, where the model stays loaded, or as a program."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from click.testing import CliRunner, Result

from boring_assets.cli import main

PROGRAM = str(Path(sys.executable).parent / "boring-assets")


class CommandLine:
    """`boring-assets` with a Dagster home and a working folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            "DAGSTER_HOME": str(folder / "home"),
            "BORING_MODEL": "boring-tiny",
            "BORING_DEVICE": "cpu",
            "BORING_PRECISION": "fp32",
        }

    def __call__(self, *arguments: object, code: int = 0, **env: str) -> Result:
        """Runs a command and checks its exit code; what it sets in the environment is taken back."""
        with mock.patch.dict(os.environ, self.env | env):
            result = CliRunner().invoke(main, [str(one) for one in arguments], terminal_width=100)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def start(self, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
        """Starts the real program."""
        command = [PROGRAM, *(str(one) for one in arguments)]
        return subprocess.Popen(command, cwd=self.folder, env=os.environ | self.env, **options)  # type: ignore[call-overload]

    def sample_data(self, name: str, *options: object, shards: int = 2, samples: int = 8) -> Path:
        """Writes small sample shards below the folder."""
        sizes = ("--num-shards", shards, "--samples-per-shard", samples, "--image-size", 32)
        self("sample-data", self.folder / name, *sizes, "--format", "parquet", *options)
        return self.folder / name

    def stamps(self, output: Path) -> dict[str, tuple[int, int]]:
        """What changes with each embeddings file, by partition key."""
        root = output / "image_embeddings"
        return {
            str(path.relative_to(root).with_suffix("")): (path.stat().st_mtime_ns, path.stat().st_ino)
            for path in root.rglob("*.parquet")
        }
