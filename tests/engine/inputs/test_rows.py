"""Parquet files that are small and hold much, or are not what their footers say: each costs itself alone."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.sources import OpenShard, open_shard
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import EmbeddedShard, embed_shards
from boring_assets.engine.results import Options
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ShardError
from boring_assets.output.files import write_table
from boring_assets.output.schema import embeddings_table
from boring_assets.storage.root import Root
from tests.engine.kinds import jpeg, shard_at


def opened(path: Path, **limits: int) -> OpenShard:
    return open_shard(shard_at(path), Limits(**limits), Fetcher())  # type: ignore[arg-type]


def write(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path / "00000.parquet", **options)
    return path / "00000.parquet"


def test_a_shard_of_too_many_rows_says_so_before_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"url": pa.nulls(100_000_000, pa.string())}))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ShardError, match=r"100000000 rows.*BORING_MAX_SHARD_ROWS"):
        opened(path)
    path = write(tmp_path, pa.table({"url": ["a"] * 11}))
    assert opened(path, shard_rows=11).rows.num_rows == 11
    with pytest.raises(ShardError, match="the limit is 10 "):
        opened(path, shard_rows=10)


def test_a_dictionary_that_expands_to_terabytes_takes_megabytes_of_memory(tmp_path: Path) -> None:
    """A million rows, each of them the one caption of 10 MB."""
    caption = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * 10_000_000])
    )
    table = pa.table({"url": ["a"] * 1_000_000, "caption": caption})
    path = write(tmp_path, table, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 200_000
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    with pytest.raises(ShardError, match=r"BORING_MAX_SHARD_MB"):
        opened(path, shard_bytes=200_000_000)
    assert (pool.max_memory() or 0) - before < 1_500_000_000


def test_long_captions_are_kept_as_long_as_they_fit(tmp_path: Path) -> None:
    path = write(
        tmp_path, pa.table({"url": ["a"] * 3, "caption": ["c" * 10_000_000] * 3}), use_dictionary=False
    )
    assert len(opened(path).column("caption")[2] or "") == 10_000_000
    with pytest.raises(ShardError, match=r"00000\.parquet has 3\d{7} bytes or more"):
        opened(path, shard_bytes=25_000_000)


def test_a_column_of_images_that_ends_early_is_an_error(tmp_path: Path) -> None:
    """A row that nobody answers would keep its shard from ever being finished."""
    path = write(tmp_path, pa.table({"key": ["a", "b"], "jpg": [b"1", b"2"]}))
    shard = opened(path)
    shard.rows = pa.concat_tables([shard.rows, shard.rows])
    with pytest.raises(ShardError, match="ends after 2"):
        list(shard.images())


def test_an_image_past_the_limit_is_not_copied_out_of_its_column(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"jpg": [bytes(100), bytes(101), None]}))
    answers = [image for _, image in opened(path, bytes=100).images()]
    assert answers[0] == bytes(100)
    assert answers[1] == Failure(Reason.TOO_LARGE, "101 bytes; the limit is 100")
    assert isinstance(answers[2], Failure)
    assert answers[2].reason is Reason.MISSING_IMAGE


VIEWS = [
    pa.array([["a", None], []], pa.list_(pa.string_view())),
    pa.array([["a", None], []], pa.large_list(pa.binary_view())),
    pa.array([{"x": "a"}, None], pa.struct([("x", pa.string_view())])),
    pa.array([[{"x": ["a"]}], None], pa.list_(pa.struct([("x", pa.list_(pa.string_view()))]))),
    pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string_view())),
]


@pytest.mark.parametrize("column", VIEWS, ids=lambda column: str(column.type))
def test_views_inside_of_other_types_are_committed_as_what_they_view(
    tmp_path: Path, encoder: Encoder, column: pa.Array
) -> None:
    path = write(tmp_path, pa.table({"key": ["a", "b"], "jpg": [jpeg(), jpeg(1)], "more": column}))
    (answer,) = embed_shards([shard_at(path)], encoder)
    assert isinstance(answer, EmbeddedShard), answer
    table = embeddings_table(answer, "float32", {})
    write_table(Root(str(tmp_path), LocalFileSystem(), str(tmp_path)), "out.parquet", table)
    read = pq.read_table(tmp_path / "out.parquet")["meta_more"].to_pylist()
    assert str(read).replace("b'", "'") == str(column.to_pylist()).replace("b'", "'")


@pytest.mark.parametrize("name", ["caption", "key", "other"])
def test_a_text_that_is_not_utf8_is_null_and_its_image_is_embedded(
    tmp_path: Path, encoder: Encoder, name: str
) -> None:
    """Parquet does not check its texts. Readers of the output would refuse the whole file."""
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    bad = write(tmp_path, pa.table({"jpg": [jpeg()], name: broken}))
    good = tmp_path / "00001.parquet"
    pq.write_table(pa.table({"jpg": [jpeg()], name: ["fine"]}), good)
    first, second = embed_shards([shard_at(bad), shard_at(good)], encoder, Options())
    for answer in (first, second):
        assert isinstance(answer, EmbeddedShard)
        assert answer.embedded.tolist() == [0]
    embeddings_table(first, "float32", {}).validate(full=True)
    column = name if name != "other" else "meta_other"
    assert embeddings_table(first, "float32", {})[column].to_pylist() == [None]
