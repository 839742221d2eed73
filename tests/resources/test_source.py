"""The input as a resource: finding shards by key gives the same as listing them all."""

from pathlib import Path

import pytest

from boring_assets.engine.samples import Shard
from boring_assets.errors import SettingsError, ShardError, StorageError
from boring_assets.sample_data import write_sample_data
from resources.source import ShardSource
from tests.seaweed import Seaweed


@pytest.mark.parametrize("where", ["local", "s3"])
def test_shards_are_found_one_by_one_as_by_a_listing(where: str, tmp_path: Path, s3_env: Seaweed) -> None:
    write_sample_data(tmp_path / "in", 30, 1, "webdataset", image_size=16)
    (tmp_path / "in" / "00005_stats.json").unlink()
    uri = str(tmp_path / "in")
    if where == "s3":
        uri = s3_env.new_prefix()
        s3_env.filesystem().put(f"{tmp_path / 'in'}/", uri, recursive=True)
    source = ShardSource(input_dir=uri, quiet_seconds=1000)
    listed = source.discover()
    assert len(listed.shards) == 29
    assert listed.growing == ["00005"]

    keys = [f"{number:05d}" for number in (7, 3, 99, 5, *range(8, 30))]
    many = source.find(keys)
    assert list(many) == keys, "in the order that was asked for"
    few = {key: found for start in (0, 15) for key, found in source.find(keys[start : start + 15]).items()}
    for key in keys:
        if key == "00099":
            assert isinstance(many[key], ShardError)
            assert f"/{key}.parquet" in str(many[key])
            assert str(few[key]) == str(many[key])
        else:
            assert many[key] == few[key]
    assert {shard.key: shard for shard in listed.shards}["00007"] == many["00007"]
    assert isinstance(many["00005"], Shard), "one that was asked for by name is taken as it is"


def test_a_key_with_a_path_outside_of_the_folder_does_not_fail_the_others(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "in", 1, 1, "webdataset", image_size=16)
    write_sample_data(tmp_path, 1, 1, "webdataset", image_size=16)
    found = ShardSource(input_dir=str(tmp_path / "in")).find(["../00000", "00000"])
    assert isinstance(found["../00000"], ShardError)
    assert isinstance(found["00000"], Shard)


def test_an_input_that_is_not_set_or_not_there(tmp_path: Path) -> None:
    for use in (ShardSource.discover, lambda source: source.find(["00000"])):
        with pytest.raises(SettingsError, match="BORING_INPUT_DIR"):
            use(ShardSource())
        with pytest.raises(StorageError, match=f"{tmp_path}/none"):
            use(ShardSource(input_dir=str(tmp_path / "none")))


def test_the_fetcher_gets_the_limits(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "in", 1, 1, "webdataset", image_size=16)
    for name in ("in", "allowed", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "x.jpg").write_bytes(b"1234567890")
    source = ShardSource(
        input_dir=str(tmp_path / "in"),
        allowed_url_prefixes=[f"file://{tmp_path}/allowed/"],
        max_image_bytes=10,
    )
    shard = source.find(["00000"])["00000"]
    assert isinstance(shard, Shard)
    fetch = source.fetcher().fetch
    assert fetch(f"file://{tmp_path}/allowed/x.jpg", shard) == b"1234567890"
    assert fetch(f"file://{tmp_path}/in/x.jpg", shard) == b"1234567890"
    refused = fetch(f"file://{tmp_path}/other/x.jpg", shard)
    assert getattr(refused, "reason", None) == "not_allowed"
    small = source.model_copy(update={"max_image_bytes": 9}).fetcher()
    assert getattr(small.fetch(f"file://{tmp_path}/in/x.jpg", shard), "reason", None) == "too_large"
