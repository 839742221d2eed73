"""What the Helm values give: the launcher's own configuration, and the Job that it really sends for a run.

There is no cluster: an HTTP server stands where the API server would be, and keeps what it is sent.
"""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from boring_assets.definitions import build_definitions
from boring_assets.instance.launcher import PromptRunCoordinator
from boring_assets.jobs import EMBED_JOB
from boring_assets.settings import Settings
from boring_assets.tags import range_tags
from partitions.shards import SHARDS
from tests.e2e.processes import PROJECT

FOLDER = PROJECT / "deploy" / "kubernetes"
IMAGE = "boring-assets:cuda"


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "values.yaml").read_text())


class ApiServer(BaseHTTPRequestHandler):
    """Takes what is created."""

    created: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.created.append((self.path, json.loads(body)))
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What is created in the cluster that `~/.kube/config` names."""
    found: list[tuple[str, dict[str, Any]]] = []
    handler = type("Handler", (ApiServer,), {"created": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "me", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        yield found
        server.shutdown()


def snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda match: f"_{match[1].lower()}", name)


def launcher_config(values: dict[str, Any], kubeconfig: Path) -> dict[str, Any]:
    """What the chart's templates make of the values, for a cluster outside of which we are."""
    given = dict(values["runLauncher"]["config"]["k8sRunLauncher"])
    assert given.pop("loadInclusterConfig") is True
    nested = {snake(name): inner for name, inner in given.pop("runK8sConfig").items()}
    sources = {
        snake(name): [source["name"] for source in given.pop(name)]
        for name in ("envConfigMaps", "envSecrets")
    }
    return {
        **{snake(name): value for name, value in given.items()},
        **sources,
        "run_k8s_config": nested,
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "job_namespace": "dagster",
        "service_account_name": "dagster",
        "dagster_home": "/opt/dagster/dagster_home",
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
    }


@pytest.fixture
def instance(
    values: dict[str, Any], created: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dg.DagsterInstance:
    """An instance with the launcher of the values; its configuration is checked by the launcher's schema."""
    config = launcher_config(values, tmp_path / "kubeconfig")
    launcher = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": launcher}))
    return dg.DagsterInstance.from_config(str(tmp_path))


def launch(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """Launches a run of a code location in a container, as the daemon does."""
    location = GrpcServerCodeLocationOrigin("boring-assets", 4000, None, "boring-assets")
    pointer = ModuleCodePointer("boring_assets.definitions", "defs")
    repository = RepositoryPythonOrigin("/opt/venv/bin/python", pointer, IMAGE, None, None)
    assert SHARDS.name
    instance.add_dynamic_partitions(SHARDS.name, ["00000", "00009"])
    run = instance.create_run_for_job(
        build_definitions(Settings()).resolve_job_def(EMBED_JOB),
        status=dg.DagsterRunStatus.STARTING,
        tags=range_tags("00000", "00009"),
        job_code_origin=JobPythonOrigin(EMBED_JOB, repository),
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), EMBED_JOB),
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    return run


def test_a_run_gets_a_pod_with_a_gpu(
    instance: dg.DagsterInstance, created: list[tuple[str, dict[str, Any]]]
) -> None:
    run = launch(instance)
    ((path, job),) = created
    assert path == "/apis/batch/v1/namespaces/dagster/jobs"
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)

    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert run.run_id in " ".join(container["args"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] in (1, "1")
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["serviceAccountName"] == "boring-data"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert job["spec"]["ttlSecondsAfterFinished"] == 86400
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    claim = volumes[mounts["/home/boring/.cache"]]["persistentVolumeClaim"]
    assert claim.get("claimName", claim.get("claim_name")) == "boring-models"
    assert {"configMapRef": {"name": "boring-settings"}} in container["envFrom"]
    password = next(one for one in container["env"] if one["name"] == "DAGSTER_PG_PASSWORD")
    assert password["valueFrom"]["secretKeyRef"]["name"] == "boring-postgres"


def test_the_pool_alone_limits_how_many_runs_go_at_once(values: dict[str, Any], tmp_path: Path) -> None:
    """The chart writes these sections into dagster.yaml as they are, in Dagster's spelling."""
    chart = dict(values["concurrency"])
    assert chart.pop("enabled") is True
    coordinator = values["dagsterDaemon"]["runCoordinator"]["config"]["customRunCoordinator"]
    concurrency = {
        section: {snake(name): value for name, value in fields.items()} for section, fields in chart.items()
    }
    config = {"concurrency": concurrency, "run_coordinator": coordinator}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_coordinator, PromptRunCoordinator)
        limits = instance.get_concurrency_config()
        assert limits.run_queue_config
        assert limits.run_queue_config.max_concurrent_runs == -1
        assert limits.pool_config.default_pool_limit == 4


def test_a_setting_that_the_launcher_does_not_know_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    """The schema that the configuration passes is one that can fail."""
    config = launcher_config(values, tmp_path / "kubeconfig") | {"resource": {}}
    launcher = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": launcher}))
    with pytest.raises(dg.DagsterInvalidConfigError, match='unexpected config entry "resource"'):
        _ = dg.DagsterInstance.from_config(str(tmp_path)).run_launcher


def test_the_other_objects_are_valid_and_are_the_ones_that_are_named(values: dict[str, Any]) -> None:
    objects = list(yaml.safe_load_all((FOLDER / "data.yaml").read_text()))
    for one in objects:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    names = {one["kind"]: one["metadata"]["name"] for one in objects}
    (location,) = values["dagster-user-deployments"]["deployments"]
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    assert [one["name"] for one in location["envConfigMaps"]] == [names["ConfigMap"]]
    assert [one["name"] for one in launcher["envConfigMaps"]] == [names["ConfigMap"]]
    assert launcher["runK8sConfig"]["podSpecConfig"]["serviceAccountName"] == names["ServiceAccount"]
    assert values["dagster-user-deployments"]["serviceAccount"]["name"] == names["ServiceAccount"]
    claims = [
        one["persistentVolumeClaim"]["claimName"] for one in launcher["volumes"] if "emptyDir" not in one
    ]
    assert claims == [names["PersistentVolumeClaim"]]
    settings = next(one["data"] for one in objects if one["kind"] == "ConfigMap")
    known = {
        name.removeprefix("BORING_").lower(): value for name, value in settings.items() if "BORING" in name
    }
    Settings(**known)
