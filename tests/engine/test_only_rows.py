"""Some rows of a shard alone, and rows that must never be embedded, in every layout."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boring_assets.engine.inputs.exclusions import Exclusions, parse_exclusions
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import EmbeddedShard, Options, embed_shards
from boring_assets.engine.samples import Reason, Shard
from boring_assets.errors import SettingsError
from tests.engine.kinds import jpeg, shard_at, write_tar
from tests.engine.shards import assert_same, make_shard
from tests.engine.site import Server

COUNT = 40
IMAGES = [jpeg(row) for row in range(COUNT)]
KEYS = [f"0-{row}" for row in range(COUNT)]


def column(folder: Path, _: Server) -> Shard:
    return make_shard(folder, "0", list(IMAGES))


def tar(folder: Path, _: Server) -> Shard:
    pq.write_table(pa.table({"key": KEYS}), folder / "0.parquet")
    write_tar(folder / "0.tar", [(f"{key}.jpg", image) for key, image in zip(KEYS, IMAGES, strict=True)])
    return shard_at(folder / "0.parquet")


def files(folder: Path, _: Server) -> Shard:
    pq.write_table(pa.table({"key": KEYS}), folder / "0.parquet")
    (folder / "0").mkdir()
    for key, image in zip(KEYS, IMAGES, strict=True):
        (folder / "0" / f"{key}.jpg").write_bytes(image)
    return shard_at(folder / "0.parquet")


def urls(folder: Path, server: Server) -> Shard:
    links = [f"{server.origin}/ok/image/{key}" for key in KEYS]
    pq.write_table(pa.table({"key": KEYS, "url": links}), folder / "0.parquet")
    return shard_at(folder / "0.parquet")


def bare_tar(folder: Path, _: Server) -> Shard:
    write_tar(folder / "0.tar", [(f"{key}.jpg", image) for key, image in zip(KEYS, IMAGES, strict=True)])
    return shard_at(folder / "0.tar")


LAYOUTS = (column, tar, files, urls, bare_tar)
Layout = Callable[[Path, Server], Shard]


def embed(
    encoder: Encoder, server: Server, shard: Shard, exclusions: Exclusions | None = None
) -> EmbeddedShard:
    options = Options(exclusions=exclusions or Exclusions(), previews=COUNT)
    fetcher = Fetcher((f"{server.origin}/ok/",))
    (result,) = embed_shards([shard], encoder, options, fetcher)
    assert isinstance(result, EmbeddedShard), result
    assert sorted(row for row, _ in result.previews) == result.embedded.tolist()
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_wanted_rows_are_embedded(
    encoder: Encoder, server: Server, tmp_path: Path, layout: Layout
) -> None:
    shard = layout(tmp_path, server)
    whole = embed(encoder, server, shard)
    assert len(whole.embedded) == COUNT
    server.asked.clear()
    wanted = [3, 17, 18, COUNT - 1]
    some = embed(encoder, server, replace(shard, only_rows=frozenset([*wanted, COUNT + 5])))
    assert some.embedded.tolist() == wanted
    assert some.failures == {}
    assert some.rows.num_rows == COUNT
    assert_same(some.embeddings, whole.embeddings[wanted])
    if layout is urls:
        assert sorted(server.asked) == sorted(f"/ok/image/{KEYS[row]}" for row in wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_excluded_rows_fail_with_their_own_reason(
    encoder: Encoder, server: Server, tmp_path: Path, layout: Layout
) -> None:
    shard = layout(tmp_path, server)
    digest = hashlib.sha256(IMAGES[20]).hexdigest()
    listed = (
        f"# takedown 17\n\n{KEYS[4]}\n{digest.upper()}\n{server.origin}/ok/image/{KEYS[6]}\nno such key\n"
    )
    exclusions = parse_exclusions(listed.encode(), "list.txt")
    result = embed(encoder, server, shard, exclusions)
    gone = [4, 6] if layout is urls else [4, 20]
    assert list(result.failures) == gone
    assert {failure.reason for failure in result.failures.values()} == {Reason.EXCLUDED}
    assert result.embedded.tolist() == [row for row in range(COUNT) if row not in gone]
    if layout is urls:
        assert not {f"/ok/image/{KEYS[row]}" for row in gone} & set(server.asked), "it was fetched"
    some = embed(encoder, server, replace(shard, only_rows=frozenset([4, 5])), exclusions)
    assert (some.embedded.tolist(), list(some.failures)) == ([5], [4])


def test_the_sha256_column_of_img2dataset_counts_too(
    encoder: Encoder, server: Server, tmp_path: Path
) -> None:
    digests = [hashlib.sha256(b"downloaded" + image).hexdigest() for image in IMAGES]
    pq.write_table(pa.table({"key": KEYS, "sha256": digests, "jpg": IMAGES}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"sha256": [digests[7]], "why": ["asked"]}), tmp_path / "list")
    exclusions = parse_exclusions((tmp_path / "list").read_bytes(), "list")
    assert list(embed(encoder, server, shard_at(tmp_path / "0.parquet"), exclusions).failures) == [7]


def test_rows_of_a_tfrecord_file(encoder: Encoder, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("google_crc32c")
    from tests.engine.inputs.test_streamed import example, framed

    (tmp_path / "0.tfrecord").write_bytes(b"".join(framed(example(image=image)) for image in IMAGES))
    shard = replace(shard_at(tmp_path / "0.tfrecord"), only_rows=frozenset([1, 8]))
    assert embed(encoder, server, shard).embedded.tolist() == [1, 8]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe\x00", "neither parquet nor text"), (b"PAR1 and no more", "damaged parquet")],
)
def test_a_list_that_cannot_be_read_stops_everything(data: bytes, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_exclusions(data, "list")


def test_a_parquet_without_images_or_urls_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "list")
    with pytest.raises(SettingsError, match=r"columns \['id'\]. Expected: at least one of key, url, sha256"):
        parse_exclusions((tmp_path / "list").read_bytes(), "list")
    pq.write_table(pa.table({"sha256": ["abc"]}), tmp_path / "list")
    with pytest.raises(SettingsError, match="64 hexadecimal digits"):
        parse_exclusions((tmp_path / "list").read_bytes(), "list")
