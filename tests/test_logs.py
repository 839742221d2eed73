"""JSON logs: each line that the project's processes write to standard error is one object."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import PROGRAM, CommandLine
from tests.seaweed import free_ports

SECRET = "planted-0123456789"


def run(cli: CommandLine, *arguments: str, **env: str) -> tuple[int, str, list[dict[str, Any]]]:
    """The exit code, what was printed, and the lines of the log."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        cwd=cli.folder,
        env=os.environ | cli.env | {"BORING_LOG_FORMAT": "json"} | env,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, done.stdout, [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_logs_json_lines_without_secrets(tmp_path: Path, workers: str) -> None:
    cli = CommandLine(tmp_path)
    cli.sample_data("in", "--broken", 2, shards=3, samples=8)
    (tmp_path / "in" / "00002.parquet").write_bytes(b"no parquet")
    (port,) = free_ports(1)
    secrets = {
        "HF_TOKEN": f"{SECRET}-token",
        "BORING_METRICS_PUSHGATEWAY": f"http://me:{SECRET}@127.0.0.1:{port}",
        "BORING_ALERT_WEBHOOK": f"https://127.0.0.1/{SECRET}",
    }
    code, printed, lines = run(
        cli, "embed", "in", "out", "--quiet-seconds", "0", "--num-workers", workers, **secrets
    )
    assert code == 3
    assert "2 embedded, 1 failed" in printed, "what it says to people stays as it is"
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    made = {line["partition"]: line for line in lines if line.get("event") == "ASSET_MATERIALIZATION"}
    assert made.keys() == {"00000", "00001"}
    for line in made.values():
        assert line["asset"] == "image_embeddings"
        assert line["metadata"]["rows"] == line["metadata"]["embedded"] + line["metadata"]["failed"] == 8
        assert line["run_id"]
    (failed,) = [line for line in lines if line["message"].startswith("Shard 00002 failed")]
    assert failed["level"] == "ERROR"
    ended = [line for line in lines if line.get("event") == "STEP_FAILURE"]
    assert "the others are committed" in ended[0]["error"]
    assert [line for line in lines if "metrics cannot be pushed" in line["message"]]
    assert SECRET not in json.dumps(lines) + printed
    assert max(len(json.dumps(line)) for line in lines) < 10_000, "no contact sheets"


def test_the_command_lines_own_errors_are_json_too(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path)
    cli.sample_data("in", shards=1, samples=2)
    code, printed, (line,) = run(cli, "embed", "in", "out", "--model", "no-such-model")
    assert (code, printed, line["level"]) == (1, "", "ERROR")
    assert "no-such-model" in line["message"]
