"""The IO manager: whole files or none, the order of a commit, and what later assets are given."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.errors import SettingsError, ShardError, StorageError
from partitions.own_files import EMBEDDINGS, FAILURES
from partitions.shards import SHARDS
from resources.embeddings_io import EmbeddingsIOManager
from tests.assets.project import finished_shard
from tests.seaweed import Seaweed, free_ports


@pytest.fixture
def manager(tmp_path: Path) -> EmbeddingsIOManager:
    return EmbeddingsIOManager(output_dir=str(tmp_path / "out"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Has the system refuse to let any file grow beyond a size, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_interrupted_write_leaves_what_was_there(manager: EmbeddingsIOManager, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manager.commit(finished_shard("a/00000", 3000), {})
    before = files(out)
    assert sorted(before) == ["image_embeddings/a/00000.parquet", "image_failures/a/00000.parquet"]

    with largest_file(64 * 1024), pytest.raises(StorageError) as caught:
        manager.commit(finished_shard("a/00000", 5000, failed=4), {})
    assert f"file://{out}/image_embeddings/a/00000.parquet" in str(caught.value)
    after = files(out)
    embeddings, failures = sorted(after)
    assert sorted(after) == sorted(before), "no staging file, no new one"
    assert after[embeddings] == before[embeddings]
    # The embeddings file is the commit mark, so it comes last: the new failures are there already.
    assert pq.read_table(out / failures).num_rows == 4
    assert manager.facts("a/00000")["failed"] == 2

    with largest_file(64), pytest.raises(StorageError, match="image_failures/new"):
        manager.commit(finished_shard("new"), {})
    assert files(out) == after
    assert manager.committed() == {"a/00000"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True)
    if mount.returncode:
        pytest.skip(f"this machine lets nobody mount a disk: {mount.stderr.decode().strip()}")
    try:
        manager = EmbeddingsIOManager(output_dir=str(small))
        manager.commit(finished_shard("0", 1000), {})
        before = files(small)
        manager.check()
        with pytest.raises(StorageError, match=r"image_embeddings/1\.parquet: the disk or the quota is full"):
            manager.commit(finished_shard("1", 9000), {})
        left = files(small)
        assert left.pop("image_failures/1.parquet")
        assert left == before
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("damage", [b"", b"PAR1", None], ids=["empty", "cut off", "damaged footer"])
def test_a_foreign_file_does_not_count_as_committed(
    manager: EmbeddingsIOManager, tmp_path: Path, damage: bytes | None
) -> None:
    written = manager.commit(finished_shard("0"), {"settings": "x"})
    assert manager.facts("0")["settings"] == "x"
    path = Path(written.uri.removeprefix("file://"))
    content = path.read_bytes()
    path.write_bytes(content[:-200] + b"\xff" * 192 + content[-8:] if damage is None else damage)
    assert manager.facts("0") == {}
    assert manager.facts("1") == {}
    pq.write_table(pa.table({"a": [1]}), path)
    assert manager.facts("0") == {}


def test_columns_that_do_not_fit_fail_the_shard_alone(manager: EmbeddingsIOManager, tmp_path: Path) -> None:
    shard = finished_shard("0")
    binary = shard.rows.set_column(1, "caption", pa.array([b"\xff\xfe"] * 8, pa.binary()))
    with pytest.raises(ShardError, match=r"file:///in/0\.parquet .* UTF-8"):
        manager.commit(replace(shard, rows=binary), {})
    assert not (tmp_path / "out").exists()


def test_nested_and_odd_columns_keep_their_types(manager: EmbeddingsIOManager) -> None:
    shard = finished_shard("0", 2, 0)
    odd = {
        "tags": pa.array([["a", "b"], None]),
        "exif": pa.array([{"iso": 100}, {"iso": None}]),
        "a.b": pa.array([1, 2], pa.int8()),
        "when": pa.array([0, None], pa.timestamp("us", "UTC")),
        "nothing": pa.nulls(2),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "embedding": pa.array([0.5, 1.5]),
    }
    rows = shard.rows
    for name, values in odd.items():
        rows = rows.append_column(name, values)
    written = manager.commit(replace(shard, rows=rows), {})
    table = pq.read_table(written.uri.removeprefix("file://"))
    for name, values in odd.items():
        assert table[f"meta_{name}"].combine_chunks().to_pylist() == values.to_pylist()
        assert table[f"meta_{name}"].type == values.type


@pytest.mark.parametrize(
    ("settings", "says"),
    [({}, "BORING_OUTPUT_DIR"), ({"output_dir": "/out", "output_dtype": "float64"}, "BORING_OUTPUT_DTYPE")],
)
def test_wrong_settings_are_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        EmbeddingsIOManager(**settings).check()


def test_an_unreachable_output_is_a_storage_error(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    for name, value in (s3.env | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    manager = EmbeddingsIOManager(output_dir="s3://boring/x")
    with pytest.raises(StorageError, match=r"s3://boring/x/image_embeddings/0\.parquet.*does not answer"):
        manager.facts("0")


# What later assets are given.

Later = Callable[..., object]


@pytest.fixture
def later(manager: EmbeddingsIOManager) -> Iterator[Later]:
    """Runs an asset that depends on `image_embeddings`, and returns what it was given.

    Partitions 0 and 1 are committed; 2 is registered and is not.
    """
    for number in (1, 0):
        manager.commit(finished_shard(str(number), 4 + number, 1), {})
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", ["1", "0", "2"])

        def run(
            partitions_def: dg.PartitionsDefinition | None = None,
            *,
            kind: object = object,
            mapping: dg.PartitionMapping | None = None,
            **run: object,
        ) -> object:
            given: list[object] = []

            def body(image_embeddings):  # type: ignore[no-untyped-def]
                given.append(image_embeddings)

            if kind is not object:
                body.__annotations__["image_embeddings"] = kind
            asset = dg.asset(
                name="later",
                partitions_def=partitions_def,
                backfill_policy=dg.BackfillPolicy.single_run() if partitions_def else None,
                ins={"image_embeddings": dg.AssetIn(partition_mapping=mapping)},
                io_manager_key="memory",
            )(body)
            upstream = dg.AssetSpec(
                "image_embeddings", partitions_def=SHARDS, metadata={"dagster/io_manager_key": "embeddings"}
            )
            dg.materialize(
                [upstream, asset],
                selection=[asset],
                resources={"embeddings": manager, "memory": dg.InMemoryIOManager()},
                instance=instance,
                **run,  # type: ignore[arg-type]
            )
            return given[0]

        yield run


def in_range(first: str, last: str) -> dict[str, dict[str, str]]:
    return {"tags": {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}}


def keys_of(frame: object) -> list[str]:
    assert isinstance(frame, pl.LazyFrame)
    return frame.select("key").collect()["key"].to_list()


def test_one_partition_is_a_lazy_frame(later: Later) -> None:
    frame = later(SHARDS, partition_key="0", kind=pl.LazyFrame)
    assert isinstance(frame, pl.LazyFrame)
    assert frame.collect_schema()["embedding"] == pl.Array(pl.Float32, 8)
    assert keys_of(frame) == ["0-0", "0-1", "0-2", "0-3"]
    assert keys_of(later(SHARDS, **in_range("1", "1"))) == [f"1-{row}" for row in range(5)]
    assert keys_of(later(mapping=dg.SpecificPartitionsPartitionMapping(["0"]))) == keys_of(frame)


def test_several_partitions_are_frames_by_key(later: Later) -> None:
    frames = later(SHARDS, **in_range("1", "0"))
    assert isinstance(frames, dict)
    assert {key: len(keys_of(frame)) for key, frame in frames.items()} == {"0": 4, "1": 5}
    assert list(frames) == ["0", "1"]
    some = later(mapping=dg.SpecificPartitionsPartitionMapping(["0", "1"]))
    assert isinstance(some, dict), "some of the partitions are not everything"
    assert list(some) == ["0", "1"]


def test_an_asset_without_partitions_gets_everything_that_is_committed(later: Later) -> None:
    for mapping in (None, dg.AllPartitionMapping()):
        assert sorted(keys_of(later(mapping=mapping, kind=pl.LazyFrame))) == [
            *(f"0-{row}" for row in range(4)),
            *(f"1-{row}" for row in range(5)),
        ]


def test_a_partition_that_is_not_committed_is_named(later: Later) -> None:
    for run in ({"partition_key": "2"}, in_range("1", "2")):
        with pytest.raises(StorageError, match=r"image_embeddings/2\.parquet"):
            later(SHARDS, **run)


def test_values_can_be_loaded_by_hand(manager: EmbeddingsIOManager) -> None:
    manager.commit(finished_shard("0"), {})
    upstream = dg.AssetSpec(
        "image_embeddings", partitions_def=SHARDS, metadata={"dagster/io_manager_key": "embeddings"}
    )
    defs = dg.Definitions(assets=[upstream], resources={"embeddings": manager})
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shards", ["0"])
        assert (
            len(keys_of(defs.load_asset_value("image_embeddings", partition_key="0", instance=instance))) == 6
        )
    assert len(keys_of(manager.scan())) == 6
    assert keys_of(manager.scan("0", FAILURES)) == ["0-6", "0-7"]
    with pytest.raises(StorageError, match="nothing exists there"):
        EmbeddingsIOManager(output_dir=f"{manager.output_dir}/none").scan()


def test_the_io_manager_accepts_shards_only(manager: EmbeddingsIOManager) -> None:
    def materialize(value: object) -> dg.ExecuteInProcessResult:
        @dg.asset(name=EMBEDDINGS, partitions_def=SHARDS, io_manager_key="embeddings")
        def asset() -> object:
            return value

        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("shards", ["0"])
            return dg.materialize(
                [asset], partition_key="0", instance=instance, resources={"embeddings": manager}
            )

    (event,) = materialize(finished_shard("0")).asset_materializations_for_node(EMBEDDINGS)
    assert event.metadata["output_uri"].value == f"file://{manager.output_dir}/{EMBEDDINGS}/0.parquet"
    assert len(keys_of(manager.scan("0"))) == 6
    other: list[EmbeddedShard | pl.LazyFrame] = [finished_shard("1"), pl.LazyFrame({"a": [1]})]
    for value, says in zip(other, ("returned the shard 1", "LazyFrame"), strict=True):
        with pytest.raises(SettingsError, match=says):
            materialize(value)
    assert manager.committed() == {"0"}
