"""S3 through obstore: answers, errors and credentials are those of s3fs, which steps in where it fails."""

import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import s3fs
from s3fs.utils import FileExpired

from boring_assets.storage import s3 as module
from boring_assets.storage.root import open_root
from boring_assets.storage.s3 import FastS3FileSystem
from tests import clouds
from tests.faulty_proxy import FaultyProxy
from tests.seaweed import Seaweed, forget_filesystems

KEYS = ["a", "a b+c%41/é", "q?x=1&y=2#z", "deep/er/..x", "~/[1]{2}*", "写真 🎉.jpg"]
DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clouds.Cloud]:
    with clouds.moto(tmp_path_factory.mktemp("moto")) as cloud:
        endpoint = cloud.env["AWS_ENDPOINT_URL"]
        s3fs.S3FileSystem(key="any", secret="thing", endpoint_url=endpoint, skip_instance_cache=True).mkdir(
            cloud.uri
        )
        yield cloud


@pytest.fixture(params=["seaweed", "moto"])
def prefix(request: pytest.FixtureRequest, s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI on each server, to which AWS's variables point."""
    cloud = None if request.param == "seaweed" else request.getfixturevalue("moto")
    for name, value in (cloud.env if cloud else s3.env).items():
        monkeypatch.setenv(name, value)
    forget_filesystems()
    return f"{cloud.uri}/x" if cloud else s3.new_prefix()


@contextmanager
def only_fast() -> Iterator[None]:
    """Lets s3fs send nothing, so that what succeeds was answered by obstore."""

    async def refuse(_: Any, method: str, *__: Any, **___: Any) -> None:
        raise AssertionError(f"s3fs sent {method}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
        yield


def test_objects_are_those_of_s3fs(prefix: str) -> None:
    fs, theirs = open_root(prefix).fs, s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    for key in KEYS:
        path = f"{prefix}/{key}".removeprefix("s3://")
        with only_fast():
            fs.pipe_file(path, DATA)
            assert fs.cat_file(path) == DATA
            assert fs.cat_file(path, start=3) == DATA[3:]
            assert fs.cat_file(path, start=5, end=9) == DATA[5:9]
            assert fs.cat_file(path, start=100, end=10**9) == DATA[100:]
            assert fs.cat_start(path, 7) == (DATA[:7], len(DATA))
            info = fs.info(path)
            with fs.open(path, "rb", block_size=100) as file:
                file.seek(1000)
                assert file.read(500) == DATA[1000:1500]
        assert theirs.cat_file(path) == DATA
        wanted = theirs.info(path)
        assert info == {name: wanted[name] for name in info}, "the ETag too, which is the source version"
        assert fs.cat_file(path, start=-4) == DATA[-4:]
    root = prefix.removeprefix("s3://")
    assert fs.info(f"{root}/deep")["type"] == "directory"
    fs.pipe_file(f"{root}/empty", b"")
    assert fs.cat_file(f"{root}/empty") == b""
    assert fs._misses < 2


def test_errors_are_those_of_s3fs(prefix: str) -> None:
    fs, theirs = open_root(prefix).fs, s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    path = f"{prefix}/there".removeprefix("s3://")
    fs.pipe_file(path, DATA)
    calls: list[Callable[[s3fs.S3FileSystem], object]] = [
        lambda one: one.cat_file(f"{path}-not"),
        lambda one: one.cat_file(f"{path}-not", start=0, end=9),
        lambda one: one.cat_file("no-such-bucket/x"),
        lambda one: one.cat_file(path, start=len(DATA), end=len(DATA) + 1),
        lambda one: one.info(f"{path}-not"),
        lambda one: one.pipe_file("no-such-bucket/x", b""),
        lambda one: one.pipe_file(path, b"", IfMatch='"another"'),
        lambda one: one.pipe_file(path, b"", mode="create"),
    ]
    for call in calls:
        with pytest.raises(Exception) as wanted:
            call(theirs)
        with pytest.raises(type(wanted.value)) as got:
            call(fs)
        assert getattr(got.value, "errno", None) == getattr(wanted.value, "errno", None)
    assert fs.cat_file(path) == DATA


def test_an_object_that_changes_while_it_is_open_is_not_mixed(prefix: str) -> None:
    fs = open_root(prefix).fs
    path = f"{prefix}/changing".removeprefix("s3://")
    fs.pipe_file(path, DATA)
    with fs.open(path, "rb", block_size=100) as file:
        assert file.read(10) == DATA[:10]
        fs.pipe_file(path, DATA[::-1])
        file.seek(9000)
        with pytest.raises(FileExpired):
            file.read(10)


def test_it_travels_to_other_processes(s3_env: Seaweed) -> None:
    root = open_root(s3_env.new_prefix())
    root.fs.pipe_file(f"{root.path}/x", DATA)
    again = pickle.loads(pickle.dumps(root))
    with only_fast():
        assert again.fs.cat_file(f"{root.path}/x") == DATA
    # The threads of obstore do not follow a fork; s3fs does.
    code = (
        "import os, sys; from boring_assets.storage.root import open_root\n"
        f"root = open_root({root.uri!r}); assert root.fs.cat_file(root.path + '/x')\n"
        "if child := os.fork(): sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "root = open_root(root.uri); assert len(root.fs.cat_file(root.path + '/x')) == 10240; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_temporary_credentials_of_a_profile_are_renewed(
    s3: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a role's are: botocore asks the profile's program again, and obstore asks botocore."""
    calls, program = tmp_path / "calls", tmp_path / "program"
    expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # botocore renews it at once
    program.write_text(
        f"#!/bin/sh\necho x >> {calls}\n"
        f'echo \'{{"Version": 1, "AccessKeyId": "{s3.key}", "SecretAccessKey": "{s3.secret}", '
        f'"Expiration": "{expires}"}}\'\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-west-1\nendpoint_url = {s3.endpoint}\ncredential_process = {program}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr(module, "_CREDENTIALS_LAST", timedelta(0))
    forget_filesystems()
    root = open_root(s3.new_prefix())
    with only_fast():
        root.fs.pipe_file(f"{root.path}/x", DATA)
        before = len(calls.read_text().split())
        assert root.fs.cat_file(f"{root.path}/x") == DATA
    assert len(calls.read_text().split()) > before


def test_a_public_bucket_needs_no_credentials(moto: clouds.Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.env["AWS_ENDPOINT_URL"])
    owner = s3fs.S3FileSystem(key="any", secret="thing", skip_instance_cache=True)
    path = f"{moto.uri}/public".removeprefix("s3://")
    owner.pipe_file(path, DATA)
    owner.call_s3("put_object_acl", Bucket=path.partition("/")[0], Key="public", ACL="public-read")
    fs = FastS3FileSystem(anon=True, skip_instance_cache=True)
    with only_fast():
        assert fs.cat_file(path) == DATA


def test_what_only_s3fs_can_read_is_left_to_it(s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    root, tries = open_root(s3_env.new_prefix()), []
    root.fs.pipe_file(f"{root.path}/x", DATA)

    def fail(*_: object) -> bytes:
        tries.append(1)
        raise OSError("no answer")

    monkeypatch.setattr(module, "_get", fail)
    for _ in range(20):
        assert root.fs.cat_file(f"{root.path}/x") == DATA
    assert len(tries) == 8
    special = FastS3FileSystem(requester_pays=True, skip_instance_cache=True)
    assert special.cat_file(f"{root.path}/x") == DATA
    assert len(tries) == 8


def test_faults_are_retried_by_s3fs(s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("500", "503", "reset before", "reset after", "truncated")
    with FaultyProxy(s3_env.endpoint, dict.fromkeys(kinds, 0.06)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_filesystems()
        root = open_root(s3_env.new_prefix())
        for number in range(60):
            data = os.urandom(1000)
            root.fs.pipe_file(f"{root.path}/{number}", data)
            assert root.fs.cat_file(f"{root.path}/{number}", start=0, end=5000) == data
        assert len(proxy.injected) == len(kinds)
