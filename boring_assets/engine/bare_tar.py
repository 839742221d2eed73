"""A tar without a parquet beside it, as webdataset has them: `{key}.jpg`, `{key}.txt`, `{key}.json`.

A key is a member's path up to the first dot of its file name, as in webdataset's own `base_plus_ext`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from boring_assets.engine.bare import MAX_TEXT_BYTES, Record, parse_json, to_table, to_text
from boring_assets.engine.layouts import IMAGE_SUFFIXES, Image, OpenShard
from boring_assets.engine.limits import Limits
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.engine.sources import find_columns
from boring_assets.engine.tar import BlockReader, read_members
from boring_assets.errors import ShardError

_TEXTS = ("txt", "caption", "text")


@dataclass
class BareTarShard(OpenShard):
    """A tar of samples; its rows stand in the order in which their first members do."""

    numbers: dict[str, int]

    def images(self) -> Iterator[Image]:  # noqa: D102
        reader = BlockReader(self.shard.fs, self.shard.path)
        taken: set[int] = set()
        try:
            for member in read_members(reader, self.shard.uri, self.limits.bytes):
                key, suffix = _split(member.name)
                row = self.numbers.get(key)
                if row is None or row in taken or suffix not in IMAGE_SUFFIXES:
                    continue
                taken.add(row)
                if member.data is None:
                    detail = f"{member.size} bytes; the limit is {self.limits.bytes}"
                    yield row, Failure(Reason.TOO_LARGE, detail)
                else:
                    yield row, member.data
        finally:
            reader.close()
        for row in range(self.rows.num_rows):
            if row not in taken:
                yield row, self.absent(row, "the tar has no image of this key")


def open_bare_tar(shard: Shard, limits: Limits, most_rows: int | None = None) -> BareTarShard:
    """Reads a tar for the texts beside its images.

    Args:
        shard: The tar.
        limits: The most that one image may cost.
        most_rows: Take only so many rows from its start; None takes all.

    Returns:
        Its rows: `key`, `caption` from `.txt`, and the members of `.json`.

    Raises:
        ShardError: It is damaged, or holds no image.
    """
    records: dict[str, Record] = {}
    images = False
    try:
        reader = BlockReader(shard.fs, shard.path)
    except OSError as error:
        raise ShardError(f"{shard.uri} cannot be read: {error}.") from error
    try:
        for member in read_members(reader, shard.uri, MAX_TEXT_BYTES):
            key, suffix = _split(member.name)
            if suffix in IMAGE_SUFFIXES:
                images = True
                records.setdefault(key, {})
            elif suffix == "json" and member.data is not None:
                record = records.setdefault(key, {})
                record |= {
                    name: value for name, value in parse_json(member.data).items() if name not in record
                }
            elif suffix in _TEXTS and member.data is not None:
                records.setdefault(key, {})["caption"] = to_text(member.data)
    except OSError as error:
        raise ShardError(f"{shard.uri} cannot be read: {error}.") from error
    finally:
        reader.close()
    if not images:
        raise ShardError(f"The tar {shard.uri} holds no image. Remove it from the input, if it is no shard.")
    keys = list(records)
    cut = 0 if most_rows is None else max(0, len(keys) - most_rows)
    keys = keys[: len(keys) - cut]
    rows = to_table([{**records[key], "key": key} for key in keys], ("key", "caption"), shard.uri)
    numbers = {key: row for row, key in enumerate(keys)}
    return BareTarShard(shard, rows, find_columns(rows.schema), limits, cut, numbers)


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member; a hidden file and one without a suffix have none."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else ("", "")
