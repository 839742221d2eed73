"""The services of deploy/docker/compose.yaml as processes of this machine, on free local ports.

Each gets what its container would get: command, environment, mounted files.
"""

import os
import re
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from compose_spec import PyCompose
from dotenv import dotenv_values

from tests.e2e.processes import PROJECT, SCRIPTS, running
from tests.postgres import program
from tests.seaweed import free_ports, weed
from tests.waiting import HANG_SECONDS, wait_for

DOCKER = PROJECT / "deploy" / "docker"
COMPOSE = DOCKER / "compose.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
_PORTS = ("3000", "4000", "5432", "8333")
_HOSTS = ("webserver", "code", "postgres", "seaweedfs")


def read_compose(variables: dict[str, str]) -> dict[str, Any]:
    """The compose file, checked, with its variables filled in and its anchors merged.

    Raises:
        ValueError: It is not valid, or a variable that it requires is empty.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if not variables.get(name) and kind == ":?":
            raise ValueError(f"{name}: {rest}")
        return variables.get(name) or (rest if kind == ":-" else "")

    merged = yaml.safe_load(_VARIABLE.sub(value, COMPOSE.read_text()))
    read = PyCompose.from_yaml(yaml.safe_dump(merged))
    read.validate()
    read.validate_volumes()
    return merged


@dataclass
class Containers:
    """All services over one folder; `env_file` is the .env that compose would read."""

    root: Path
    env_file: Path
    ports: dict[str, str] = field(
        default_factory=lambda: dict(zip(_PORTS, map(str, free_ports(4)), strict=True))
    )

    @cached_property
    def variables(self) -> dict[str, str]:
        return {name: value or "" for name, value in dotenv_values(self.env_file).items()}

    @cached_property
    def services(self) -> dict[str, Any]:
        return read_compose(self.variables)["services"]

    def command(self, service: str, command: list[str]) -> list[str]:
        """A command of a service as it is run here."""
        name, *arguments = [self._here(service, one) for one in command]
        if name == "server":  # an argument of the image's program; its inner ports are free ones too
            names = [f"{one}.port{grpc}" for one in ("master", "volume", "filer") for grpc in ("", ".grpc")]
            names += ["s3.port.grpc", "s3.port.iceberg", "s3.port.lance"]
            more = [f"-{one}={port}" for one, port in zip(names, free_ports(len(names)), strict=True)]
            return [weed(), name, *arguments, *more]
        ours = SCRIPTS / name
        return [str(ours) if ours.exists() else program(name) or name, *arguments]

    def env(self, service: str) -> dict[str, str]:
        """The environment of a service: nothing of this machine's but the path."""
        spec, image = self.services[service], {}
        if "build" in spec:
            (home,) = re.findall(r"DAGSTER_HOME=(\S+)", (DOCKER / "Dockerfile").read_text())
            image = {"DAGSTER_HOME": str(self._path(service, home))}
        given = (self.variables if spec.get("env_file") else {}) | spec.get("environment", {})
        passed = {name: os.environ[name] for name in ("PATH", "TMPDIR", "PYTHONPATH") if name in os.environ}
        return passed | image | {name: self._here(service, str(value)) for name, value in given.items()}

    def start(self, service: str) -> AbstractContextManager[None]:
        """Keeps a service running."""
        for container_path in self._mounts(service):
            self._path(service, container_path)
        log = self.root / f"{service}.log"
        return running(self.command(service, self.services[service]["command"]), log, self.env(service))

    def run(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec SERVICE COMMAND` would run."""
        return subprocess.run(
            self.command(service, list(command)),
            env=self.env(service),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    def is_healthy(self, service: str) -> bool:
        """What the health check of the compose file says."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(service, *command).returncode == 0

    def wait_until_healthy(self, service: str) -> None:
        """What a service waits for that depends on this one."""
        wait_for(lambda: self.is_healthy(service), f"{service} is healthy", every=1)

    def _mounts(self, service: str) -> dict[str, str]:
        """What is mounted into a container, by its path there."""
        mounts = [str(one).split(":") for one in self.services[service].get("volumes", [])]
        return {target: source for source, target, *_ in mounts}

    def _path(self, service: str, path: str) -> Path:
        """Where a path of a container is here; what is mounted there is laid there."""
        source = self._mounts(service).get(path, "")
        if source.startswith("."):
            file = self._path(service, str(Path(path).parent)) / Path(path).name
            text = (DOCKER / source).read_text().replace("host: code\n", "host: 127.0.0.1\n")
            file.write_text(text.replace("port: 4000\n", f"port: {self.ports['4000']}\n"))
            return file
        local = self.root / "volumes" / source if source else self.root / service / path.strip("/")
        local.mkdir(parents=True, exist_ok=True)
        return local

    def _here(self, service: str, text: str) -> str:
        """A word of a command, or a value of the environment, with this machine's ports, hosts and paths."""
        for path in sorted(self._mounts(service), key=len, reverse=True):
            if re.search(rf"(^|=){path}\b", text):
                return text.replace(path, str(self._path(service, path)))
        if text in _HOSTS:
            return "127.0.0.1"
        text = re.sub(rf"(//|-ip=)({'|'.join(_HOSTS)})\b|\b(0\.0\.0\.0|localhost)\b", r"\g<1>127.0.0.1", text)
        return re.sub(rf"\b({'|'.join(_PORTS)})\b", lambda match: self.ports[match[1]], text)
