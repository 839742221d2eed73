"""A real Ray cluster on this machine; deploy/ray/start.sh starts each node."""

import json
import os
import secrets
import subprocess
import tempfile
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from tests.e2e.processes import PROJECT, SCRIPTS
from tests.seaweed import free_ports
from tests.waiting import HANG_SECONDS

_MARK = "TEST_RAY_NODE"
_OBJECT_STORE = 80_000_000


@dataclass
class RayCluster:
    """Nodes by name; each process of a node, runs included, has the name in its environment."""

    token: str = field(default_factory=lambda: secrets.token_hex(16))
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __enter__(self) -> Self:
        # A short path: Ray puts sockets there.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._port, dashboard = free_ports(2)
        self.url = f"http://127.0.0.1:{dashboard}"
        return self

    def __exit__(self, *_: object) -> None:
        # What watches over a process may start another one meanwhile.
        while found := self.processes():
            for process in found:
                process.kill()
            psutil.wait_procs(found, timeout=10)
        self._folder.cleanup()

    @property
    def env(self) -> dict[str, str]:
        """What Dagster's processes need to reach the cluster."""
        return {
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def start_head(self, gpus: int, cpus: int) -> None:
        """Starts the first node, `head`."""
        dashboard, client = self.url.rpartition(":")[2], free_ports(1)[0]
        done = self._start(
            "head",
            "--head",
            f"--port={self._port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={self.folder}",
            f"--num-gpus={gpus}",
            f"--num-cpus={cpus}",
        )
        assert done.returncode == 0, done.stdout

    def start_node(self, name: str, gpus: int, cpus: int) -> None:
        """Starts another node that joins."""
        done = self.join(name, f"--num-gpus={gpus}", f"--num-cpus={cpus}")
        assert done.returncode == 0, done.stdout

    def join(self, name: str, *options: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """Tries to have a node join; with another token, where one is given."""
        address = f"--address={self.address}"
        return self._start(name, address, *options, RAY_AUTH_TOKEN=self.token if token is None else token)

    @property
    def address(self) -> str:
        """Where the head listens, as `ray start` prints it."""
        (head,) = [node for node in self.nodes() if node["is_head_node"]]
        return f"{head['node_ip']}:{self._port}"

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes, as Ray lists them."""
        return self.ask("/api/v0/nodes?detail=False")["data"]["result"]["result"]

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs, as Ray shows them to whoever has the token."""
        return self.ask("/api/jobs/")

    def ask(self, path: str, token: str | None = None) -> Any:
        """Asks the dashboard; without a token where the empty one is given."""
        request = urllib.request.Request(self.url + path)
        if token != "":
            request.add_header("Authorization", f"Bearer {token or self.token}")
        with urllib.request.urlopen(request, timeout=HANG_SECONDS) as response:
            return json.load(response)

    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """All processes of a node or of the cluster, those of its runs too."""
        mark = f"{self.id}-{node or ''}"
        return [process for process in psutil.process_iter() if _mark(process).startswith(mark)]

    def run_processes(self) -> dict[str, psutil.Process]:
        """The processes that execute a run now, by the run's id."""
        found = {}
        for process in self.processes():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "execute_run" in command:
                found[json.loads(command[-1])["pipeline_run_id"]] = process
        return found

    def kill_raylet(self, node: str) -> None:
        """Kills what makes a machine a node; what it had started ends by itself, as Ray sees to it."""
        (raylet,) = [process for process in self.processes(node) if process.name() == "raylet"]
        raylet.kill()

    def _start(self, node: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        agent = free_ports(1)[0]
        more = [
            f"--dashboard-agent-listen-port={agent}",
            f"--object-store-memory={_OBJECT_STORE}",
            "--node-ip-address=127.0.0.1",
            "--include-log-monitor=false",
        ]
        log = self.folder / f"{node}.txt"
        with log.open("wb") as sink:  # not a pipe: the node keeps it open
            done = subprocess.run(
                [PROJECT / "deploy" / "ray" / "start.sh", *options, *more],
                env={
                    **os.environ,
                    "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
                    "RAY_AUTH_TOKEN": self.token,
                    "TMPDIR": str(self.folder),  # the locks of devices are this cluster's own
                    _MARK: f"{self.id}-{node}",
                    **env,
                },
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=HANG_SECONDS,
                start_new_session=True,
                check=False,
            )
        return subprocess.CompletedProcess(done.args, done.returncode, log.read_text())


def node_of(process: psutil.Process) -> str:
    """The name of the node that a process belongs to."""
    return _mark(process).partition("-")[2]


def _mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(_MARK, "")
    except psutil.Error:
        return ""
