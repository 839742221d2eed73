import dagster as dg
import pytest
from dagster._core.definitions.partitions.utils.base import INVALID_PARTITION_SUBSTRINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from boring_assets.errors import ShardError
from partitions.shards import check_key, key_of, uri_of

ODD = ["été/a b+c%20#1?v=2", "..a/b..", "a.parquet", "x" * 247, "a\\b", "写真/\u3000"]


@pytest.mark.parametrize("root", ["/data/set", "s3://bucket/set", "bucket", "/", "file:///", "memory:///"])
@pytest.mark.parametrize(
    "key",
    ["00000", "part-1/00017", "été/a b+c%20#1?v=2", "..a/b..", "a.parquet", "x" * 247, "a\\b", "写真/\u3000"],
)
def test_a_key_leads_to_the_file_and_back(root: str, key: str) -> None:
    uri = uri_of(root, key)
    assert uri.startswith(root)
    assert uri.endswith(f"/{key}.parquet")
    assert key_of(uri, root) == key


ASTRAY = ["", "/etc/passwd", "../up", "a/../b", "a/..", "a//b", "a/", ".", "./a", "a/./b"]
UNSTORABLE = ["a...b", "a\nb", "a\x00", "\x1b[31m", "a\x7f", "\x85", "\udcff", "a\u2028b", "gpj.\u202e00000"]
LONG = ["x" * 248, "é" * 124, "/".join(["x" * 100] * 9)]


@pytest.mark.parametrize("key", [*ASTRAY, *UNSTORABLE, *LONG])
def test_unsafe_keys_are_refused_by_name(key: str) -> None:
    with pytest.raises(ShardError) as caught:
        uri_of("/data", key)
    message = str(caught.value)
    assert ascii(key[:300]) in message
    assert message.isprintable(), "a message that could forge a log line"
    with pytest.raises(ShardError):
        key_of(f"/data/{key}.parquet", "/data")


@pytest.mark.parametrize("path", ["/data/00000.tar", "/database/00000.parquet", "/other/00000.parquet"])
def test_only_parquet_files_below_the_root_are_shards(path: str) -> None:
    with pytest.raises(ShardError, match="/data"):
        key_of(path, "/data")


def test_dagster_takes_every_key_that_is_let_through() -> None:
    awkward = st.sampled_from([*ASTRAY, *UNSTORABLE, *INVALID_PARTITION_SUBSTRINGS, "..", "/", "a"])
    with dg.DagsterInstance.ephemeral() as instance:

        @settings(deadline=None)
        @given(st.lists(awkward | st.text(max_size=4), max_size=4).map("".join))
        def takes(key: str) -> None:
            try:
                check_key(key)
            except ShardError:
                return
            instance.add_dynamic_partitions("shards", [key])
            assert key in instance.get_dynamic_partitions("shards")

        takes()
        assert len(instance.get_dynamic_partitions("shards")) > 5
