"""JSON logs: each line that the project's processes write to standard error is one object."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.command_line import PROGRAM, CommandLine
from tests.seaweed import free_ports
from tests.waiting import HANG_SECONDS

SECRET = "planted-0123456789"


def run(cli: CommandLine, *arguments: str, **env: str) -> tuple[int, str, list[dict[str, Any]]]:
    """The exit code, what was printed, and the lines of the log."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        cwd=cli.folder,
        env=os.environ | cli.env | {"BORING_LOG_FORMAT": "json"} | env,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, [json.loads(line) for line in done.stderr.splitlines()]


def test_a_run_logs_json_lines_without_secrets(tmp_path: Path) -> None:
    cli = CommandLine(tmp_path)
    cli.sample_data("in", "--broken", 2, shards=3, samples=8)
    (tmp_path / "in" / "00002.parquet").write_bytes(b"no parquet")
    (port,) = free_ports(1)
    signed = [f"http://127.0.0.1:{port}/a.jpg?X-Amz-Signature={SECRET}", f"https://me:{SECRET}@host/a.jpg"]
    pq.write_table(pa.table({"url": signed}), tmp_path / "in" / "00003.parquet")
    secrets = {
        "HF_TOKEN": f"{SECRET}-token",
        "BORING_METRICS_PUSHGATEWAY": f"http://me:{SECRET}@127.0.0.1:{port}",
        "BORING_ALERT_WEBHOOK": f"https://127.0.0.1/{SECRET}",
    }
    code, printed, lines = run(cli, "embed", "in", "out", "--quiet-seconds", "0", **secrets)
    assert code == 3
    assert "3 embedded, 1 failed" in printed, "what it says to people stays as it is"
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    made = {line["partition"]: line for line in lines if line.get("event") == "ASSET_MATERIALIZATION"}
    assert made.keys() == {"00000", "00001", "00003"}
    for line in made.values():
        assert line["asset"] == "image_embeddings"
        assert line["metadata"]["rows"] == line["metadata"]["embedded"] + line["metadata"]["failed"]
        assert line["run_id"]
    assert sum(line["metadata"]["rows"] for line in made.values()) == 18
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
    (port,) = free_ports(1)
    endpoint = f"http://me:{SECRET}@127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_MAX_ATTEMPTS": "1"}
    code, printed, lines = run(cli, "embed", "in", "s3://bucket/out", AWS_ENDPOINT_URL=endpoint, **keys)
    assert (code, printed) == (1, "")
    assert lines[-1]["level"] == "ERROR"
    assert "s3://bucket/out/.boring_assets.json: the server does not answer" in lines[-1]["message"]
    assert SECRET not in json.dumps(lines)
