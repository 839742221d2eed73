"""S3 and local disks as input and output in all combinations, and what a run says when S3 refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.sample_data import write_sample_data
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import open_root
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import Project, stored
from tests.seaweed import BUCKET, Seaweed, forget_filesystems, free_ports

KEYS = ["files/00000", "parquet/00000", "webdataset/00000", "webdataset/00001"]
FILES = {f"{kind}/{key}.parquet" for kind in ("image_embeddings", "image_failures") for key in KEYS}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards in three layouts, each with four broken samples of twelve."""
    root = tmp_path_factory.mktemp("shards")
    for layout, count in (("files", 1), ("parquet", 1), ("webdataset", 2)):
        write_sample_data(root / layout, count, 12, layout, broken=4, image_size=64)  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="module")
def s3_shards(shards: Path, s3: Seaweed) -> str:
    """The same shards on S3; no test changes them."""
    return copy_to_s3(shards, s3)


def copy_to_s3(shards: Path, s3: Seaweed) -> str:
    prefix = s3.new_prefix()
    s3.filesystem().put(f"{shards}/", prefix, recursive=True)
    return prefix


NewProject = Callable[..., Project]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewProject:
    def make(name: str, input_dir: object, output_dir: object, **more: Any) -> Project:
        return Project(tmp_path / name, monkeypatch, input_dir, output_dir, **more)

    return make


def outputs(uri: str) -> dict[str, bytes]:
    """Path and content of every file of an output."""
    root = open_root(uri)
    paths = [path for path, info in root.fs.find(root.path, detail=True).items() if info["type"] == "file"]
    return {path.removeprefix(f"{root.path}/"): root.fs.cat_file(path) for path in paths}


def objects(s3: Seaweed, prefix: str) -> list[str]:
    found = s3.filesystem().find(prefix, detail=True)
    return [path for path, info in found.items() if info["type"] == "file"]


def test_s3_and_local_give_the_same(
    shards: Path, s3_shards: str, s3_env: Seaweed, project: NewProject, tmp_path: Path
) -> None:
    tables: dict[str, dict[str, pa.Table]] = {}
    for source in (str(shards), s3_shards):
        for target in (f"file://{tmp_path}/out-{source[:2].strip('/')}", s3_env.new_prefix()):
            name = f"{source[:2]}-{target[:2]}".replace("/", "_")
            mine = project(name, source, target)
            assert mine.register() == KEYS
            outcome = mine.run(KEYS[0], KEYS[-1])
            assert outcome.error == ""
            found = outputs(target)
            assert {name for name in found if not name.startswith(".counts/")} == FILES | {
                "metadata.json",
                ".boring_assets.json",
            }
            tables[name] = {file: pq.read_table(pa.BufferReader(found[file])) for file in sorted(FILES)}
            assert [event.partition for event in mine.events()] == KEYS
            assert mine.events()[0].metadata["output_uri"].value == (
                f"{target}/image_embeddings/{KEYS[0]}.parquet"
            )
    assert len(tables) == 4
    first, *others = tables.values()
    for other in others:
        for file, table in first.items():
            assert other[file].equals(table), f"{file} differs"
    assert sum(table.num_rows for table in first.values()) == 4 * 12


PLANTED = ("planted-secret-0123456789", "planted-token-0123456789")


@pytest.fixture
def refused(
    s3: Seaweed, s3_shards: str, project: NewProject, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], tmp_path: Path,
) -> Callable[..., str]:  # fmt: skip
    """Runs with some AWS variables, expects the run to fail, and returns what it says.

    No secret of the environment may be stored or printed anywhere, and nothing may be written.
    """

    def run(env: dict[str, str], *, source: str = s3_shards, target: str = "") -> str:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        forget_filesystems()
        target = target or s3.new_prefix()
        mine = project("refused", source, target)
        mine.register(*KEYS)
        outcome = mine.run(KEYS[0], KEYS[-1])
        assert outcome.error
        assert mine.events() == []
        secrets = [value for name, value in env.items() if "SECRET" in name or "TOKEN" in name]
        assert secrets
        printed = capfd.readouterr()
        everything = [*stored(tmp_path), outcome.error.encode(), (printed.out + printed.err).encode()]
        assert any(outcome.error.split("\n")[0].encode()[:80] in part for part in everything[:-2]), (
            "not recorded"
        )
        for secret in secrets:
            assert not [part for part in everything if secret.encode() in part]
        if target.startswith("s3://boring/"):
            assert objects(s3, target) == []
        return outcome.error

    return run


def test_wrong_credentials(refused: Callable[..., str], s3: Seaweed) -> None:
    target = s3.new_prefix()
    said = refused(s3.env_of(s3.key, PLANTED[0]), target=target)
    assert target in said
    assert "AWS_SECRET_ACCESS_KEY" in said


def test_a_wrong_session_token(refused: Callable[..., str], s3: Seaweed) -> None:
    target = s3.new_prefix()
    said = refused(s3.env_of("nobody", PLANTED[0]) | {"AWS_SESSION_TOKEN": PLANTED[1]}, target=target)
    assert target in said


def test_missing_buckets_are_named(refused: Callable[..., str], s3: Seaweed) -> None:
    assert "Cannot write s3://no-such-output/x: there is no bucket no-such-output" in refused(
        s3.env, target="s3://no-such-output/x"
    )
    target = s3.new_prefix()
    assert "s3://no-such-input/x: there is no bucket no-such-input" in refused(
        s3.env, source="s3://no-such-input/x", target=target
    )


def test_an_endpoint_that_does_not_answer(refused: Callable[..., str], s3: Seaweed) -> None:
    (port,) = free_ports(1)
    nowhere = f"http://127.0.0.1:{port}"
    target = s3.new_prefix()
    said = refused(s3.env | {"AWS_ENDPOINT_URL": nowhere, "AWS_MAX_ATTEMPTS": "1"}, target=target)
    assert target in said
    assert nowhere in said


def test_an_output_that_may_only_be_read(refused: Callable[..., str], s3: Seaweed) -> None:
    target = s3.new_prefix()
    said = refused(s3.env_of(s3.reader_key, s3.reader_secret), target=target)
    assert f"Cannot write {target}: the credentials are wrong or lack permission" in said


def test_a_run_that_succeeds_stores_no_secret_either(
    s3_env: Seaweed, s3_shards: str, project: NewProject, tmp_path: Path
) -> None:
    mine = project("home", s3_shards, tmp_path / "out")
    mine.register()
    assert mine.run(KEYS[0]).error == ""
    everything = list(stored(tmp_path))
    assert [part for part in everything if s3_shards.encode() in part], "what is stored can be read here"
    assert not [part for part in everything if s3_env.secret.encode() in part]


def test_a_large_object_appears_whole(s3_env: Seaweed) -> None:
    prefix = s3_env.new_prefix()
    content = bytes(101 * 2**20)
    write_bytes(open_root(prefix), "big/00000.parquet", content)
    fs = s3_env.filesystem()
    assert fs.info(f"{prefix}/big/00000.parquet")["size"] == len(content)
    assert "-" in fs.info(f"{prefix}/big/00000.parquet")["ETag"], "sent in several parts"
    assert fs.cat_file(f"{prefix}/big/00000.parquet") == content
    name = prefix.removeprefix(f"s3://{BUCKET}/")
    assert not fs.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=name).get("Uploads")


def test_a_deleted_shard_does_not_fail_the_others(s3_env: Seaweed, shards: Path, project: NewProject) -> None:
    source = copy_to_s3(shards, s3_env)
    mine = project("home", source, s3_env.new_prefix())
    mine.register()
    s3_env.filesystem().rm(f"{source}/{KEYS[1]}.parquet")
    outcome = mine.run(KEYS[0], KEYS[-1])
    assert list(outcome.failed_shards) == [KEYS[1]]
    assert f"There is no shard {source}/{KEYS[1]}.parquet" in outcome.error
    left = [key for key in KEYS if key != KEYS[1]]
    assert [event.partition for event in mine.events()] == left
    assert EmbeddingsIOManager.from_settings(mine.settings).committed() == set(left)
