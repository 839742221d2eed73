"""SQLite files stay open between Dagster's statements."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Reports events, and prints whether the log of the run's file outlives each statement. Then it ends.
REPORT = """
import sys
from pathlib import Path
import dagster as dg
from boring_assets.instance.homes import open_instance

@dg.op
def nothing(): pass

@dg.job
def job(): nothing()

instance = dg.DagsterInstance.get() if sys.argv[1] == "dagster" else open_instance("output")
run = instance.create_run_for_job(job)
for _ in range(3):
    instance.report_engine_event("an event", run)
logs = [path.name for path in Path(instance.root_directory).rglob("*-wal")]
print(f"{run.run_id}.db-wal" in logs)
print(run.run_id)
"""


@pytest.mark.parametrize("opened_by", ["dagster", "project"])
def test_sqlite_logs_stay_open_between_statements_and_are_copied_back_at_exit(
    tmp_path: Path, opened_by: str
) -> None:
    env = {**os.environ, "DAGSTER_HOME": str(tmp_path)}
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    done = subprocess.run(
        [sys.executable, "-c", REPORT, opened_by], env=env, capture_output=True, text=True, check=True
    )
    kept, run_id = done.stdout.split()
    assert kept == str(opened_by == "project")
    assert list(tmp_path.rglob("*-wal")) == []
    assert list(tmp_path.rglob(f"{run_id}.db"))
