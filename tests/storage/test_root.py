import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC, EROFS
from pathlib import Path

import pytest
from fsspec.registry import _registry

from boring_assets.errors import SettingsError, StorageError
from boring_assets.storage.errors import storage_error
from boring_assets.storage.root import Root, check_readable, check_writable, open_root
from partitions.discovery import discover
from tests.seaweed import BUCKET, Seaweed, forget_filesystems, free_ports

SetEnv = Callable[..., None]


def _discover(root: Root) -> None:
    discover(root, quiet_seconds=0)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> SetEnv:
    """Sets AWS's variables, and drops filesystems that were made under others."""

    def set_env(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget_filesystems()

    return set_env


@pytest.fixture
def server(s3: Seaweed, aws: SetEnv) -> Callable[[str, str], None]:
    """Points AWS's variables at the S3 server, with a key and a secret of the test's choice."""
    return lambda key, secret: aws(**s3.env_of(key, secret))


@contextmanager
def refused(uri: str, *, says: str, never: tuple[str, ...] = ()) -> Iterator[None]:
    """Expects a StorageError that names the URI and the fix, and that tells no secret."""
    with pytest.raises(StorageError) as caught:
        yield
    message = str(caught.value)
    assert uri in message
    assert says in message
    for secret in never:
        assert secret not in message
    assert caught.value.__cause__ is not None, "the traceback must lead on to the real cause"


def test_local_paths_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("a/b", "./a/../a/b/", "~/a/b", f"{tmp_path}/a/b", f"file://{tmp_path}/a/b/"):
        root = open_root(given)
        assert (root.path, root.uri) == (f"{tmp_path}/a/b", f"file://{tmp_path}/a/b")
        assert open_root(root.uri) == root
    check_writable(root)
    check_readable(root)
    assert list(Path("a/b").iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("nosuch://bucket/x", "'nosuch'"),
        ("s3:/bucket/x", "s3://"),
        ("s3://", "no bucket"),
        ("s3:///x", "no bucket"),
    ],
)
def test_a_malformed_uri_is_refused_with_what_was_expected(uri: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        open_root(uri)


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # fsspec keeps the class that another test may have imported.
    monkeypatch.delitem(_registry, scheme, raising=False)
    with pytest.raises(SettingsError, match=rf"boring_assets\[{extra}\]"):
        open_root(f"{scheme}://bucket/x")


@pytest.mark.parametrize(
    "uri",
    ["s3://AKIA123:topsecret@bucket/x", "s3://AKIA123:top/secret@bucket/x", "sftp://me:topsecret@host:22/x"],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SettingsError, match="holds credentials") as caught:
        open_root(uri)
    assert "secret" not in str(caught.value)


def test_s3_can_be_read_and_written_and_nothing_is_left_behind(s3_env: Seaweed) -> None:
    root = open_root(f"{s3_env.new_prefix()}/deep/")
    check_writable(root)
    found = s3_env.filesystem().find(root.path, detail=True)
    assert [name for name, facts in found.items() if facts["type"] == "file"] == []
    root.fs.pipe_file(f"{root.path}/x", b"x")
    check_readable(root)


def test_wrong_credentials(s3: Seaweed, server: Callable[[str, str], None]) -> None:
    for key, secret in ((s3.key, "wrong" + s3.secret), ("unknown-key", s3.secret)):
        server(key, secret)
        root = open_root(s3.new_prefix())
        for look in (_discover, check_writable):
            with refused(root.uri, says="AWS_SECRET_ACCESS_KEY", never=(secret, s3.secret)):
                look(root)
        # A HEAD request has no body, so all that the server can say is 403.
        with refused(root.uri, says="credentials", never=(secret, s3.secret)):
            check_readable(root)


@pytest.mark.parametrize("look", [_discover, check_readable, check_writable])
def test_no_credentials(s3: Seaweed, aws: SetEnv, look: Callable[[Root], None]) -> None:
    aws(AWS_ENDPOINT_URL=s3.endpoint, AWS_EC2_METADATA_DISABLED="true")
    root = open_root(s3.new_prefix())
    with refused(root.uri, says="Set AWS_ACCESS_KEY_ID"):
        look(root)


def test_an_unknown_profile(aws: SetEnv) -> None:
    aws(AWS_PROFILE="nobody")
    with refused(f"s3://{BUCKET}", says="AWS_PROFILE"):
        check_readable(open_root(f"s3://{BUCKET}"))


def test_a_missing_bucket_is_named_and_not_created(s3_env: Seaweed) -> None:
    bucket = f"missing-{uuid.uuid4().hex[:8]}"
    root = open_root(f"s3://{bucket}/x")
    for look in (_discover, check_readable, check_writable):
        with refused(root.uri, says=f"no bucket {bucket}"):
            look(root)
    assert not s3_env.filesystem().exists(bucket)


def test_a_reader_may_read_and_not_write(s3: Seaweed, server: Callable[[str, str], None]) -> None:
    prefix = s3.new_prefix()
    s3.filesystem().pipe_file(f"{prefix}/0.parquet", b"data")
    server(s3.reader_key, s3.reader_secret)
    root = open_root(prefix)
    check_readable(root)
    assert [shard.key for shard in discover(root, quiet_seconds=-1e6).shards] == ["0"]
    with refused(prefix, says="lack permission (AccessDenied)", never=(s3.reader_secret,)):
        check_writable(root)


def test_a_server_that_does_not_answer(s3: Seaweed, aws: SetEnv) -> None:
    (port,) = free_ports(1)
    aws(**s3.env | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    with refused("s3://bucket/x", says=f"AWS_ENDPOINT_URL=http://127.0.0.1:{port}", never=(s3.secret,)):
        check_readable(open_root("s3://bucket/x"))


def test_an_endpoint_that_is_no_url(s3: Seaweed, aws: SetEnv) -> None:
    aws(**s3.env | {"AWS_ENDPOINT_URL": "localhost:8333"})
    with refused("s3://bucket/x", says="AWS_ENDPOINT_URL=localhost:8333 is not a server URL"):
        check_readable(open_root("s3://bucket/x"))


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("region", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_endpoint_and_region_follow_aws_variables(s3: Seaweed, aws: SetEnv, name: str, region: str) -> None:
    aws(
        AWS_ACCESS_KEY_ID=s3.key,
        AWS_SECRET_ACCESS_KEY=s3.secret,
        **{name: s3.endpoint, region: "eu-central-1"},
    )
    root = open_root(s3.new_prefix())
    check_writable(root)
    assert root.fs.s3.meta.region_name == "eu-central-1"


def test_a_profile_of_aws_files_is_followed(s3: Seaweed, aws: SetEnv, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"[lab]\naws_access_key_id = {s3.key}\naws_secret_access_key = {s3.secret}\n")
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-west-2\nendpoint_url = {s3.endpoint}\n")
    aws(
        AWS_PROFILE="lab",
        AWS_SHARED_CREDENTIALS_FILE=str(file),
        AWS_CONFIG_FILE=str(tmp_path / "config"),
    )
    check_writable(open_root(s3.new_prefix()))


def test_local_trouble_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = open_root(str(tmp_path / "file" / "out"))
    with refused(blocked.uri, says="is a file, not a folder"):
        check_writable(blocked)
    missing = open_root(str(tmp_path / "missing"))
    for look in (_discover, check_readable):
        with refused(missing.uri, says="nothing exists there"):
            look(missing)
    assert not Path(missing.path).exists()


def test_a_folder_without_rights(unprivileged: Path) -> None:
    root = open_root(str(unprivileged / "locked"))
    Path(root.path).mkdir(mode=0)
    for look in (_discover, check_readable, check_writable):
        with refused(root.uri, says="permission denied"):
            look(root)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_and_a_read_only_one() -> None:
    with pytest.raises(OSError) as full:
        Path("/dev/full").write_text("x")
    assert full.value.errno == ENOSPC
    assert "is full" in str(storage_error(full.value, "file:///out", "write"))
    assert "read-only" in str(storage_error(OSError(EROFS, os.strerror(EROFS)), "file:///out", "write"))


def test_unexpected_errors_have_no_secrets(aws: SetEnv) -> None:
    aws(AWS_SECRET_ACCESS_KEY="topsecret")
    error = RuntimeError("https://me:pass@host/x?X-Amz-Signature=abcdef&n=1 with topsecret failed")
    message = str(storage_error(error, "s3://bucket/x", "read"))
    assert "RuntimeError" in message
    assert "failed" in message
    for secret in ("topsecret", "pass", "abcdef"):
        assert secret not in message


def test_a_metadata_service_that_never_answers_does_not_hang(aws: SetEnv) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        aws(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{port}")
        with refused("s3://bucket/x", says="Set AWS_ACCESS_KEY_ID"):
            check_readable(open_root("s3://bucket/x"))
