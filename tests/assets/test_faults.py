"""What others do to a run: sources that change, credentials that run out, storage that fails by chance."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.inputs import layouts, sources
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.shard_states import State
from tests.assets.project import Project, metadata_of
from tests.faulty_proxy import FaultyProxy
from tests.seaweed import Seaweed, forget_filesystems


def shards(folder: Path, count: int, layout: Any = "webdataset", rows: int = 8, **more: Any) -> list[Path]:
    return write_sample_data(folder, count, rows, layout, broken=2, image_size=32, **more)


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_a_source_that_changes_while_it_is_read_is_never_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    paths = shards(tmp_path / "in", 3)
    mine = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out")
    mine.register()
    inner = layouts.TarShard.images

    def disturbed(self: layouts.TarShard) -> Iterator[layouts.Image]:
        for number, image in enumerate(inner(self)):
            if self.shard.key == "00001" and number == 3:
                if how == "changed":
                    shards(tmp_path / "in", 1, first_shard=1, seed=9)
                else:
                    paths[1].unlink()
            yield image

    with monkeypatch.context() as patch:
        patch.setattr(layouts.TarShard, "images", disturbed)
        outcome = mine.run("00000", "00002")
    assert list(outcome.failed_shards) == ["00001"]
    assert ("has changed" if how == "changed" else "There is no shard") in outcome.failed_shards["00001"]
    assert sorted(event.partition or "" for event in mine.events()) == ["00000", "00002"]
    assert not mine.path("00001").exists()
    assert not mine.path("00001", "image_failures").exists()

    if how == "changed":
        assert mine.run("00000", "00002").error == ""
        new = pq.read_table(paths[1])["url"].to_pylist()
        assert set(mine.table("00001")["url"].to_pylist()) < set(new)
        assert mine.table("00001").num_rows == 6
        assert set(mine.states().values()) == {State.DONE}


def test_adopted_shards_name_their_failures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "in", 1)
    mine = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out")
    mine.register()
    mine.run("00000")
    mine.run("00000")
    first, adopted = map(metadata_of, mine.events())
    assert adopted["adopted"]
    assert adopted["failures_uri"] == first["failures_uri"]


@pytest.fixture
def on_s3(tmp_path: Path, s3_env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Settings]:
    """Shards of all three layouts on S3, and an undisturbed project over them."""
    for layout in ("webdataset", "files", "parquet"):
        shards(tmp_path / "in" / layout, 2, layout)
    source = s3_env.new_prefix()
    s3_env.filesystem().put(f"{tmp_path / 'in'}/", source, recursive=True)
    mine = Project(tmp_path / "undisturbed", monkeypatch, source, tmp_path / "out")
    keys = mine.register()
    assert mine.run(keys[0], keys[-1]).error == ""
    return source, mine.settings


def disturbed_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: FaultyProxy, source: str, target: str
) -> Project:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    forget_filesystems()
    mine = Project(tmp_path / "disturbed", monkeypatch, source, target)
    mine.register()
    return mine


def test_a_server_that_fails_by_chance_changes_nothing(
    tmp_path: Path, s3_env: Seaweed, on_s3: tuple[str, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, undisturbed = on_s3
    target = s3_env.new_prefix()
    kinds = ("500", "503", "reset before", "reset after", "truncated")
    with FaultyProxy(s3_env.endpoint, dict.fromkeys(kinds, 0.05), seed=1) as proxy:
        mine = disturbed_project(tmp_path, monkeypatch, proxy, source, target)
        keys = sorted(mine.states())
        outcome = mine.run(keys[0], keys[-1])
        assert outcome.error == ""
        assert set(mine.states().values()) == {State.DONE}
    assert all(proxy.injected[kind] for kind in kinds), proxy.injected
    fs = s3_env.filesystem()
    for kind in ("image_embeddings", "image_failures"):
        for key in keys:
            wanted = pq.read_table(Path(undisturbed.output_dir) / kind / f"{key}.parquet")
            got = pq.read_table(pa.BufferReader(fs.cat_file(f"{target}/{kind}/{key}.parquet")))
            assert got.equals(wanted), f"{kind}/{key}"
    assert len([path for path in fs.find(target) if path.endswith(".parquet")]) == 2 * len(keys)


@pytest.mark.parametrize("after", [0, 3])
def test_expired_credentials_stop_the_run_and_keep_what_is_committed(
    tmp_path: Path, s3_env: Seaweed, on_s3: tuple[str, Settings], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    source, _ = on_s3
    with FaultyProxy(s3_env.endpoint, {}) as proxy:
        mine = disturbed_project(tmp_path, monkeypatch, proxy, source, str(tmp_path / "out-2"))
        keys = sorted(mine.states())
        inner = sources.open_shard
        opened = []

        def expire(shard: Any, *rest: Any) -> layouts.OpenShard:
            opened.append(shard.key)
            proxy.expired = len(opened) > after
            return inner(shard, *rest)

        with monkeypatch.context() as patch:
            patch.setattr("boring_assets.engine.reader.open_shard", expire)
            outcome = mine.run(keys[0], keys[-1])
        assert outcome.stops, "one error for the run, not one for each shard"
        assert outcome.error.startswith("Cannot read s3://")
        assert "the credentials" in outcome.error
        done = [event.partition for event in mine.events()]
        assert len(done) < len(keys)

        proxy.expired = False
        assert mine.run(keys[0], keys[-1]).error == ""
        assert set(mine.states().values()) == {State.DONE}
        failures = [mine.table(key, "image_failures") for key in keys]
        assert {reason for table in failures for reason in table["reason"].to_pylist()} == {
            "not_downloaded", "decode_error",
        }  # fmt: skip


def test_a_storage_error_fails_the_shard_and_records_no_image_as_failed(
    tmp_path: Path, s3_env: Seaweed, on_s3: tuple[str, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = on_s3
    with FaultyProxy(s3_env.endpoint, {}) as proxy:
        mine = disturbed_project(tmp_path, monkeypatch, proxy, source, str(tmp_path / "out-2"))
        inner = layouts.FolderShard._read

        def broken(self: layouts.FolderShard, item: tuple[str, int]) -> layouts.Image:
            proxy.rates = {"500": 1.0}
            try:
                return inner(self, item)
            finally:
                proxy.rates = {}

        with monkeypatch.context() as patch:
            patch.setattr(layouts.FolderShard, "_read", broken)
            outcome = mine.run("files/00000")
    assert list(outcome.failed_shards) == ["files/00000"]
    assert mine.events() == []


def test_embed_repairs_the_totals_even_with_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed after its last event and before its totals leaves no work, and old totals."""
    from boring_assets.commands.embedding import embed_all

    shards(tmp_path / "in", 2)
    mine = Project(tmp_path / "home", monkeypatch, tmp_path / "in", tmp_path / "out", quiet_seconds=0)
    embed_all(mine.settings)
    path = tmp_path / "out" / "metadata.json"
    right = path.read_text()
    for left in (None, "{}", json.dumps(json.loads(right) | {"num_shards": 1})):
        path.unlink() if left is None else path.write_text(left)
        embed_all(mine.settings)
        assert json.loads(path.read_text())["num_shards"] == 2
    before = path.stat().st_mtime_ns
    embed_all(mine.settings)
    assert path.stat().st_mtime_ns == before, "what is right is left alone"
