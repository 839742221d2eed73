"""Shards that lead to no images, are damaged, or lead outside of their folder: each says so."""

import base64
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.fetch import Fetcher
from boring_assets.engine.inputs.lookup import Lookup
from boring_assets.engine.inputs.sources import open_shard
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import FailedShard, embed_shards
from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import ShardError
from tests.engine.kinds import shard_at, write_tar
from tests.engine.opening import DATA, KEYS, images_of, reasons, write


def test_a_shard_with_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    path = write(tmp_path, name=["a"], size=[1])
    with pytest.raises(ShardError) as caught:
        images_of(path)
    for part in (str(path), "name", "size", "jpg", "`.tar`", "`url`"):
        assert part in str(caught.value)


@pytest.mark.parametrize("layout", ["tar", "folder"])
def test_images_beside_a_parquet_without_keys(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path, caption=["a"], url=["a.jpg"])
    if layout == "tar":
        write_tar(path.with_suffix(".tar"), [("a.jpg", b"a")])
    else:
        path.with_suffix("").mkdir()
    with pytest.raises(ShardError, match="no `key` column") as caught:
        images_of(path)
    assert str(path) in str(caught.value)


WRITE_AGAIN = "Write it again, or remove it"


@pytest.mark.parametrize(
    ("damage", "fix"),
    [
        ("not parquet", WRITE_AGAIN),
        ("empty", WRITE_AGAIN),
        ("cut", WRITE_AGAIN),
        ("missing", "Check that it is there"),
    ],
)
def test_an_unreadable_parquet_is_named(tmp_path: Path, damage: str, fix: str) -> None:
    path = write(tmp_path, key=KEYS, jpg=DATA)
    whole = path.read_bytes()
    {
        "not parquet": lambda: path.write_bytes(b"<html>" * 100),
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "missing": lambda: path.unlink(),
    }[damage]()
    with pytest.raises(ShardError, match=fix) as caught:
        images_of(path)
    assert str(path) in str(caught.value)


class _NoKeys(encryption.KmsClient):
    """Stands for a service that keeps keys: these are not secret."""

    def __init__(self, _: object) -> None:
        encryption.KmsClient.__init__(self)

    def wrap_key(self, key_bytes: bytes, _: str) -> bytes:
        return base64.b64encode(key_bytes)


@pytest.mark.parametrize("column", ["key", "jpg"])
@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_parquet_says_that_it_is(
    encoder: Encoder, tmp_path: Path, column: str, plaintext_footer: bool
) -> None:
    path = write(tmp_path, key=KEYS, jpg=DATA)
    table = pq.read_table(path)
    wanted = encryption.EncryptionConfiguration("footer", column_keys={"column": [column]})
    wanted.plaintext_footer = plaintext_footer
    keys = encryption.CryptoFactory(_NoKeys)
    how = keys.file_encryption_properties(encryption.KmsConnectionConfig(), wanted)
    with pq.ParquetWriter(path, table.schema, encryption_properties=how) as writer:
        writer.write_table(table)
    (result,) = embed_shards([shard_at(path)], encoder)
    assert isinstance(result, FailedShard)
    assert str(result.error).endswith("It is encrypted: write it without encryption.")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([b"c"])], ["key", "key", "jpg"])
    pq.write_table(table, tmp_path / "00000.parquet")
    with pytest.raises(ShardError, match="two columns of one name"):
        images_of(tmp_path / "00000.parquet")


def test_a_tar_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, key=KEYS)
    path.with_suffix(".tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ShardError, match=r"00000\.tar"):
        images_of(path)


def test_a_folder_is_not_left_by_links_nor_waited_for(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    path = write(inside, key=["a", "b", "c", "d"])
    folder = inside / "00000"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (inside / "near.jpg").write_bytes(b"near")
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "b.jpg").symlink_to(inside / "near.jpg")
    os.mkfifo(folder / "c.jpg")
    (folder / "d.jpg").symlink_to(tmp_path / "nothing.jpg")
    images = images_of(path)
    assert reasons(images)[0] is Reason.NOT_ALLOWED
    assert images[1] == b"near"
    assert reasons(images)[2] is Reason.NOT_ALLOWED
    assert isinstance(images[3], Failure)
    one_by_one = Lookup(open_shard(shard_at(path), Limits(), Fetcher()))
    assert [one_by_one.read(row) for row in range(4)] == images
