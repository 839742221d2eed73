"""Other object storages for tests, each a real server on a free local port: Azurite, a GCS emulator, moto."""

import base64
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_READY_SECONDS = 120
SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Cloud:
    """A running server.

    Attributes:
        uri: An empty container or bucket.
        env: The variables that give access to it.
        secret: A credential that must appear nowhere; empty if the server takes none.
    """

    uri: str
    env: dict[str, str]
    secret: str = ""


@contextmanager
def azurite(folder: Path) -> Iterator[Cloud]:
    """Microsoft's Azurite, with an account of its own; reached by a connection string, as adlfs reads it."""
    port, account = _free_port(), "boringaccount"
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    endpoint = f"http://127.0.0.1:{port}/{account}"
    program = SCRIPTS.parent / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    options = ["--blobPort", str(port), "--location", str(folder), "--silent", "--skipApiVersionCheck"]
    with _server([str(program), *options], endpoint, {"AZURITE_ACCOUNTS": f"{account}:{key}"}):
        text = (
            f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={endpoint};"
        )
        yield Cloud("az://boring", {"AZURE_STORAGE_CONNECTION_STRING": text}, key)


@contextmanager
def gcs(folder: Path) -> Iterator[Cloud]:
    """An emulator of Google Cloud Storage; it takes no credentials."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    program = str(SCRIPTS / "gcp-storage-emulator")
    options = [
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--in-memory",
        "--default-bucket",
        "boring",
    ]
    with _server([program, *options], endpoint, {}):
        yield Cloud(
            "gs://boring", {"STORAGE_EMULATOR_HOST": endpoint, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        )


@contextmanager
def moto(folder: Path) -> Iterator[Cloud]:
    """moto's S3, a second implementation of S3 beside SeaweedFS."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    key = secrets.token_hex(20)
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "boring",
        "AWS_SECRET_ACCESS_KEY": key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _server([str(SCRIPTS / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], endpoint, {}):
        yield Cloud("s3://boring", env, key)


@contextmanager
def _server(command: list[str], url: str, env: dict[str, str]) -> Iterator[None]:
    """Runs a server, and waits until it answers."""
    import os

    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{command[0]} is missing. `make test-all` installs it.")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | env, **quiet)  # type: ignore[call-overload]
    end = time.monotonic() + _READY_SECONDS
    try:
        while not _answers(url):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < end, f"{command[0]} does not answer"
            time.sleep(0.1)
        yield
    finally:
        process.kill()  # it keeps nothing, and the emulator of GCS may ignore SIGTERM
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it refuses a request without credentials
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
