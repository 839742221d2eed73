import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from boring_assets.errors import ShardError, StorageError
from boring_assets.storage.root import Root, open_root
from partitions.discovery import Discovery, discover, find_shard
from tests.seaweed import Seaweed

QUIET = 60.0


@dataclass
class Place:
    """An input on one kind of storage, written through a filesystem that the code under test does not see."""

    root: Root
    writer: AbstractFileSystem

    def write(self, *names: str, data: bytes = b"data") -> None:
        for name in names:
            self.writer.pipe_file(f"{self.root.path}/{name}", data)

    def look(self, seconds_later: float = 0.0) -> Discovery:
        return discover(self.root, quiet_seconds=QUIET, now=time.time() + seconds_later)

    def keys(self, seconds_later: float = 0.0) -> list[str]:
        return [shard.key for shard in self.look(seconds_later).shards]

    def version(self, key: str) -> str:
        """The version, which both ways to a shard must agree on."""
        (shard,) = [shard for shard in self.look(2 * QUIET).shards if shard.key == key]
        assert shard == find_shard(self.root, key)
        return shard.version


def _local(request: pytest.FixtureRequest) -> Place:
    root = open_root(str(request.getfixturevalue("tmp_path") / "input"))
    Path(root.path).mkdir()
    return Place(root, root.fs)


def _memory(request: pytest.FixtureRequest) -> Place:
    root = open_root(f"memory://{uuid.uuid4().hex}")
    root.fs.mkdir(root.path)
    return Place(root, MemoryFileSystem())


def _s3(request: pytest.FixtureRequest) -> Place:
    server = request.getfixturevalue("s3_env")
    return Place(open_root(server.new_prefix()), server.filesystem())


@pytest.fixture(params=[_local, _memory, _s3], ids=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    make: Callable[[pytest.FixtureRequest], Place] = request.param
    return make(request)


def test_a_shard_is_complete_with_its_stats_file_or_after_the_quiet_time(place: Place) -> None:
    place.write("done.parquet", "done.tar", "done_stats.json", "fresh.parquet", "fresh.tar", "stray.tar")
    place.write("empty.parquet", "empty_stats.json", data=b"")

    now = place.look()
    assert [shard.key for shard in now.shards] == ["done"]
    assert now.growing == ["empty", "fresh", "stray"]

    later = place.look(2 * QUIET)
    assert [shard.key for shard in later.shards] == ["done", "empty", "fresh"]
    assert later.growing == []
    (why,) = later.refused.values()
    assert "no parquet of the same name" in why


def test_a_shard_has_its_uri(place: Place) -> None:
    place.write("part-1/00017.parquet", "part-1/00017_stats.json")
    (shard,) = place.look().shards
    assert shard.key == "part-1/00017"
    assert shard.uri == f"{place.root.uri}/part-1/00017.parquet"
    assert shard.root == place.root.path
    assert shard.fs.cat_file(shard.path) == b"data"
    assert open_root(shard.uri).path == shard.path


def test_hidden_and_underscored_names_are_skipped_and_folders_searched(place: Place) -> None:
    hidden = [
        "_tmp/0.parquet",
        ".git/0.parquet",
        "a/_tmp/b/0.parquet",
        ".0.parquet",
        "_0.parquet",
        "a/.0.parquet",
    ]
    place.write(
        *hidden, "b/00001.parquet", "b/00000.parquet", "10.parquet", "9.parquet", "b/c/d/00000.parquet"
    )
    place.write("00000/000000001.jpg", "00000/000000001.json", "notes.txt", "parquet")
    assert place.keys(2 * QUIET) == ["10", "9", "b/00000", "b/00001", "b/c/d/00000"]


def test_a_rewritten_parquet_or_tar_is_another_version_and_nothing_else_is(place: Place) -> None:
    place.write("0.parquet", "1.parquet")
    first, bystander = place.version("0"), place.version("1")
    assert place.version("0") == first

    place.write("0.tar")
    with_tar = place.version("0")
    place.write("0.tar", data=b"tada")
    new_tar = place.version("0")
    place.write("0.parquet", data=b"tada")
    new_parquet = place.version("0")
    assert len({first, with_tar, new_tar, new_parquet}) == 4

    place.write("0_stats.json", "0/0.jpg", "2.parquet")
    assert place.version("0") == new_parquet
    assert place.version("1") == bystander


def test_one_process_sees_what_is_written_and_deleted_while_it_runs(place: Place) -> None:
    place.write("a/0.parquet", "a/0_stats.json")
    assert place.keys() == ["a/0"]
    assert find_shard(place.root, "a/0").key == "a/0"
    place.write("a/1.parquet", "a/1_stats.json", "b/0.parquet", "b/0_stats.json")
    assert place.keys() == ["a/0", "a/1", "b/0"]
    place.writer.rm_file(f"{place.root.path}/a/0.parquet")
    assert place.keys() == ["a/1", "b/0"]
    with pytest.raises(ShardError, match=r"a/0\.parquet"):
        find_shard(place.root, "a/0")


def test_a_missing_root_is_an_error_that_names_it_and_an_empty_one_is_empty(place: Place) -> None:
    place.write("only/notes.txt")
    assert place.look() == Discovery([], [], {}, {".txt": f"{place.root.path}/only/notes.txt"})
    for missing in ("missing", "onl", "only/missing"):
        root = open_root(f"{place.root.uri}/{missing}")
        with pytest.raises(StorageError, match=root.uri):
            discover(root, quiet_seconds=QUIET)


def test_a_root_that_is_a_file_is_an_error(place: Place) -> None:
    place.write("0.parquet")
    with pytest.raises(StorageError, match=r"0\.parquet.*file"):
        discover(open_root(f"{place.root.uri}/0.parquet"), quiet_seconds=QUIET)


def test_a_file_name_that_cannot_be_a_key_does_not_fail_the_others(place: Place) -> None:
    place.write("a...b.parquet", "good.parquet")
    found = place.look(2 * QUIET)
    assert [shard.key for shard in found.shards] == ["good"]
    assert list(found.refused) == [f"{place.root.path}/a...b.parquet"]
    assert "Rename" in found.refused[f"{place.root.path}/a...b.parquet"]


def test_odd_names_are_shards_or_refused_with_a_printable_name(tmp_path: Path) -> None:
    """Nothing is passed over in silence, and nothing that is shown can move a terminal's cursor."""
    bad = ["a\nb", "\x1b[2J", "a\rb", "a\x7f", "\u202egpj", "a...b", "\x85", "a\tb"]
    good = ["été", "写真", "a b", "a'b\"", "$(id)", "%2e%2e", "a\\..\\b", "x" * 247, "🎉"]
    for name in bad + good:
        (tmp_path / f"{name}.parquet").write_bytes(b"data")
    found = discover(open_root(str(tmp_path)), quiet_seconds=0)
    assert {shard.key for shard in found.shards} == set(good)
    assert len(found.refused) == len(bad)
    assert all((path + why).isprintable() for path, why in found.refused.items())


def test_many_shards_need_one_request(s3_env: Seaweed, s3_calls: list[str]) -> None:
    place = Place(open_root(s3_env.new_prefix()), s3_env.filesystem())
    for number in range(100):
        place.write(f"{number // 10}/{number:05d}.parquet", f"{number // 10}/{number:05d}.tar")
    s3_calls.clear()
    assert len(place.keys(2 * QUIET)) == 100
    assert s3_calls == ["ListObjectsV2"]


def test_an_empty_bucket_is_empty(s3_env: Seaweed) -> None:
    bucket = f"empty-{uuid.uuid4().hex[:8]}"
    s3_env.filesystem().mkdir(bucket)
    assert discover(open_root(f"s3://{bucket}"), quiet_seconds=0).shards == []


def test_local_links_to_files_are_followed_and_odd_names_refused(tmp_path: Path) -> None:
    target, root = tmp_path / "elsewhere.parquet", open_root(str(tmp_path / "input"))
    Path(root.path).mkdir()
    target.write_bytes(b"data")
    Path(root.path, "linked.parquet").symlink_to(target)
    Path(root.path, "broken.parquet").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(root.path) + b"/\xff.parquet")).write_bytes(b"data")

    found = discover(root, quiet_seconds=0)
    (linked,) = found.shards
    assert linked == find_shard(root, "linked")
    (refused,) = found.refused
    refused.encode()
    assert "UTF-8" in found.refused[refused]

    target.write_bytes(b"other data")
    assert discover(root, quiet_seconds=0).shards[0].version != linked.version


def test_a_folder_without_read_permission_does_not_fail_the_others(unprivileged: Path) -> None:
    for name in ("locked", "open"):
        (unprivileged / name).mkdir()
        (unprivileged / name / "0.parquet").write_bytes(b"data")
    (unprivileged / "locked").chmod(0)

    found = discover(open_root(str(unprivileged)), quiet_seconds=0)
    assert [shard.key for shard in found.shards] == ["open/0"]
    assert list(found.refused) == [str(unprivileged / "locked")]
    assert "permission denied" in found.refused[str(unprivileged / "locked")]


def test_img2dataset_output_is_found_whole(shared_data: Path) -> None:
    found = discover(open_root(str(shared_data)), quiet_seconds=1e12)
    expected = {
        str(path.relative_to(shared_data))[: -len(".parquet")] for path in shared_data.rglob("*.parquet")
    }
    assert len(expected) >= 7
    assert {shard.key for shard in found.shards} == expected
    assert found.growing == []


def test_tars_and_tfrecords_are_shards_where_there_is_no_parquet(place: Place) -> None:
    place.write("a/0.tar", "a/1.tar", "a/1_stats.json", "b/t.tfrecord", "b/t.tfrecord-00000-of-00002")
    place.write(
        "c/0.parquet", "c/0_stats.json", "c/1.tar", "d/0.parquet", "d/0.tar", "d/0_stats.json", "d/1.tar"
    )
    assert [shard.key for shard in place.look().shards] == ["a/1", "c/0", "d/0"]
    assert place.look().growing == ["a/0", "b/t", "b/t.tfrecord-00000-of-00002", "c/1", "d/1"]
    later = {shard.key: shard for shard in place.look(2 * QUIET).shards}
    assert set(later) == {"a/0", "a/1", "b/t", "b/t.tfrecord-00000-of-00002", "c/0", "c/1", "d/0"}
    for key, shard in later.items():
        assert shard.fs.cat_file(shard.path) == b"data"
        assert find_shard(place.root, key) == shard
        assert open_root(shard.uri).path == shard.path
    with pytest.raises(ShardError, match="There is no shard"):
        find_shard(place.root, "d/1")
    before = later["a/0"].version
    place.write("a/0.tar", data=b"other data")
    assert find_shard(place.root, "a/0").version != before


def test_two_files_of_one_name_are_not_one_shard(place: Place) -> None:
    place.write("a.tar", "a.tfrecord")
    now = place.look(2 * QUIET)
    assert [shard.uri for shard in now.shards] == [f"{place.root.uri}/a.tar"]
    (why,) = now.refused.values()
    assert "same name" in why


def test_a_tar_with_its_end_mark_is_complete_at_once(place: Place) -> None:
    place.write("a/whole.tar", data=b"content" * 100 + bytes(1024))
    place.write("a/cut.tar", data=b"content" * 100)
    now = place.look()
    assert [shard.key for shard in now.shards] == ["a/whole"]
    assert now.growing == ["a/cut"]


def test_compressed_tars_are_shards_and_other_archives_are_named(place: Place) -> None:
    place.write("a.tar.gz", "b.tgz", "c.tar.zst", "d.tar.bz2", "e.zip")
    found = place.look(2 * QUIET)
    assert [shard.key for shard in found.shards] == ["a", "b", "c"]
    assert all(find_shard(place.root, shard.key) == shard for shard in found.shards)
    assert [path.rpartition("/")[2] for path in found.refused] == ["d.tar.bz2", "e.zip"]


def test_files_that_would_be_shards_under_another_name_are_named(place: Place) -> None:
    """Beside shards, where nothing else would tell that they are missing."""
    misnamed = ["B.PARQUET", "c.pq", "d.TAR", "e.tfrec", "f.tfrecord.gz", "g.parquet.gz", "h.ZIP", "i.Tar.gz"]
    place.write("a.parquet", "A/k.parquet", "Notes.TXT", *misnamed)
    found = place.look(2 * QUIET)
    assert [shard.key for shard in found.shards] == ["A/k", "a"]
    assert [path.rpartition("/")[2] for path in found.refused] == misnamed
    assert all("ename the file" in why or "Pack" in why for why in found.refused.values())
    assert "It is empty" not in found.explain_empty("in")


def test_an_input_without_shards_says_what_it_holds_and_what_to_do(place: Place) -> None:
    place.write(".hidden")
    assert "It is empty" in place.look().explain_empty("in")
    place.write("a.jpg", "list.jsonl")
    said = place.look().explain_empty("in")
    assert ".jpg, .jsonl" in said
    assert "boring-assets list-pictures in" in said
    assert 'polars.read_ndjson("list.jsonl").write_parquet("list.parquet")' in said
