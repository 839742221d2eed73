"""Short versions of `make torture`: the same programs, on less."""

import os
import subprocess
import sys

import pytest

from tests.e2e.processes import PROJECT


def torture(part: str, *options: str) -> str:
    command = [sys.executable, "-m", f"torture.{part}", *options]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\npassed\n" in done.stdout
    return done.stdout


@pytest.mark.heavy
def test_killed_runs_lose_nothing() -> None:
    """On S3, whose commits have more steps; the local disk has `make torture` and test_killed_run.py."""
    output = torture("crashes", "--kills", "2", "--storage", "s3", "--shards", "4", "--images", "12")
    assert "s3: kills  " in output


@pytest.mark.heavy
def test_memory_and_open_files_stay_flat() -> None:
    torture("soak", "--images", "1500", "--per-shard", "50")
