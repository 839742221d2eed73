"""Prometheus, its Pushgateway and node_exporter as processes of this machine, on free local ports."""

import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import PROJECT, running
from tests.seaweed import free_ports
from tests.waiting import HANG_SECONDS, wait_for

RULES = PROJECT / "deploy" / "monitoring" / "alerts.yaml"


def program(name: str) -> str:
    """Path of a program of Prometheus; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(
            f"{name} is not installed; on Debian: "
            "apt-get install prometheus prometheus-pushgateway prometheus-node-exporter"
        )
    return found


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=HANG_SECONDS) as response:
        return str(response.read().decode())


def _is_ready(url: str) -> bool:
    try:
        get(url)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True


@dataclass(frozen=True)
class Monitoring:
    """What was started.

    Attributes:
        folder: Folder of node_exporter's textfile collector.
        gateway: URL of the Pushgateway.
        prometheus: URL of Prometheus, which scrapes both each second.
    """

    folder: Path
    gateway: str
    prometheus: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an expression, now."""
        return list(self._ask("query", query=expression)["result"])

    def rules(self) -> list[dict[str, Any]]:
        """The alerting rules, as Prometheus has loaded and evaluated them."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, what: str, **parameters: str) -> Any:
        url = f"{self.prometheus}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        answer = json.loads(get(url))
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def monitoring(root: Path) -> Iterator[Monitoring]:
    """Starts all three."""
    commands = [
        program(name) for name in ("prometheus-pushgateway", "prometheus-node-exporter", "prometheus")
    ]
    gateway, node, prometheus = (f"127.0.0.1:{port}" for port in free_ports(3))
    folder = root / "textfiles"
    folder.mkdir()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "node", "static_configs": [{"targets": [node]}]},
            {"job_name": "push", "honor_labels": True, "static_configs": [{"targets": [gateway]}]},
        ],
    }
    (root / "prometheus.yaml").write_text(json.dumps(config))  # which is YAML too
    options = [
        [f"--web.listen-address={gateway}", "--persistence.file="],  # Debian's own would outlast the test
        [
            f"--web.listen-address={node}",
            "--collector.disable-defaults",
            f"--collector.textfile.directory={folder}",
            "--collector.textfile",
        ],
        [
            f"--web.listen-address={prometheus}",
            f"--config.file={root / 'prometheus.yaml'}",
            f"--storage.tsdb.path={root / 'tsdb'}",
        ],
    ]
    with ExitStack() as stack:
        for command, its in zip(commands, options, strict=True):
            log = root / f"{Path(command).name}.log"
            stack.enter_context(running([command, *its], log, dict(os.environ)))
        for url in (f"http://{gateway}/-/ready", f"http://{node}/metrics", f"http://{prometheus}/-/ready"):
            wait_for(lambda url=url: _is_ready(url), f"{url} answers")
        yield Monitoring(folder, f"http://{gateway}", f"http://{prometheus}")
