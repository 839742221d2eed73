"""Files of deploy/ through the tools that they are for; the other modules here do the rest."""

import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from compose_spec import PyCompose
from dotenv import dotenv_values

from boring_assets.settings import PREFIX, Settings
from tests.deploy.containers import DOCKER, read_compose
from tests.e2e.processes import PROJECT, SCRIPTS
from tests.postgres import Postgres
from tests.waiting import HANG_SECONDS

POSTGRES = PROJECT / "deploy" / "postgres"


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / "hadolint", file], capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


def test_the_dockerfile_passes_its_linter(tmp_path: Path) -> None:
    done = hadolint(DOCKER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text((DOCKER / "Dockerfile").read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(bad).stdout


def test_the_image_gets_all_that_its_build_copies() -> None:
    """Docker takes only what the ignore file leaves."""
    left = {
        line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        name
        for line in (DOCKER / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied == left
    assert all((PROJECT / name).exists() for name in left)


def test_the_file_with_the_keys_never_gets_into_a_commit() -> None:
    file = "deploy/docker/.env"
    git = ["git", "-C", str(PROJECT)]
    assert subprocess.run([*git, "check-ignore", "-q", file], check=False).returncode == 0
    assert subprocess.run([*git, "ls-files", file], capture_output=True, check=True).stdout == b""


def test_the_compose_file_is_valid_and_only_one_daemon_starts() -> None:
    variables = {name: value or "x" for name, value in dotenv_values(DOCKER / ".env.example").items()}
    services = read_compose(variables)["services"]
    profiles = {name: set(spec.get("profiles", [])) for name, spec in services.items()}
    chosen = set(variables["COMPOSE_PROFILES"].split(","))
    for profile, others in (("cpu", "daemon"), ("gpu", "daemon-gpu")):
        active = {profile} | chosen - {"cpu"}
        started = {name for name, of_service in profiles.items() if not of_service or of_service & active}
        assert started == {"webserver", others, "code", "postgres", "seaweedfs"}
    settings = {name for name in variables if name.startswith(PREFIX)}
    assert settings <= {PREFIX + name.upper() for name in Settings.model_fields}
    with pytest.raises(ValueError, match="imagee"):
        PyCompose.from_yaml("services: {code: {imagee: x}}")


def test_the_dagster_yaml_for_postgres_differs_in_storage_and_logs_only() -> None:
    ours = yaml.safe_load((POSTGRES / "dagster.yaml").read_text())
    del ours["storage"], ours["compute_logs"]
    assert ours == yaml.safe_load((PROJECT / "dagster.yaml").read_text())


RAY = PROJECT / "deploy" / "ray"


def test_the_dagster_yaml_for_ray_differs_from_the_one_for_postgres_in_launching_only(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster validates the file, and dagster-ray the launcher's section."""
    text = (RAY / "dagster.yaml").read_text()
    ours, theirs = (yaml.safe_load(one) for one in (text, (POSTGRES / "dagster.yaml").read_text()))
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "run_coordinator",
        "run_launcher",
        "run_monitoring",
    }
    assert ours.keys() == theirs.keys()

    for name, value in postgres.env(postgres.new_database()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "logs")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head.example.internal:8265")
    (tmp_path / "dagster.yaml").write_text(text)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        launcher: Any = instance.run_launcher
        assert launcher.address == "http://head.example.internal:8265"
        queue = instance.get_concurrency_config().run_queue_config
        assert queue
        assert (queue.max_concurrent_runs, queue.max_user_code_failure_retries) == (-1, 120)
    (tmp_path / "dagster.yaml").write_text(text.replace("num_gpus", "num_gpu"))
    with (
        dg.DagsterInstance.from_config(str(tmp_path)) as instance,
        pytest.raises(dg.DagsterInvalidConfigError, match="num_gpu"),
    ):
        _ = instance.run_launcher
