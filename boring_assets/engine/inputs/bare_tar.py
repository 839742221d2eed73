"""A tar without a parquet beside it, as webdataset has them: `{key}.jpg`, `{key}.txt`, `{key}.json`.

A key is a member's path up to the first dot of its file name, as in webdataset's own `base_plus_ext`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.bare import MAX_TEXT_BYTES, Stream, parse_json, to_text, unread
from boring_assets.engine.inputs.layouts import IMAGE_SUFFIXES, Image
from boring_assets.engine.inputs.tar import BlockReader, read_members
from boring_assets.engine.samples import Shard
from boring_assets.errors import ShardError

_TEXTS = ("txt", "caption", "text")


@dataclass
class BareTarShard(Stream):
    """A tar of samples; its rows stand in the order in which their first members do."""

    first: ClassVar[tuple[str, ...]] = ("key", "caption")

    reader: BlockReader

    def _read(self) -> Iterator[Image]:
        images = False
        for member in read_members(self.reader, self.shard.uri, max(self.limits.bytes, MAX_TEXT_BYTES)):
            key, suffix = split(member.name)
            image = suffix in IMAGE_SUFFIXES
            images = images or image
            if not makes_row(suffix, member.size) or (row := self.row_of(key)) is None:
                continue
            if image:
                yield row, self.too_large(member.size) or member.data or b""
            elif suffix == "json":
                record = parse_json(member.data or b"")
                self.gather(row, {name: value for name, value in record.items() if name != "key"})
            else:
                self.gather(row, {"caption": to_text(member.data or b"")}, replace=True)
        if not images:
            raise ShardError(
                f"The tar {self.shard.uri} holds no image. Remove it from the input, if it is no shard."
            )

    def why_absent(self, row: int) -> str:  # noqa: D102
        return "the tar has no image of this key"

    def close(self) -> None:  # noqa: D102
        self.reader.close()


def open_bare_tar(shard: Shard, limits: Limits, most_rows: int | None = None) -> BareTarShard:
    """Opens a tar, of which nothing is read yet.

    Args:
        shard: The tar.
        limits: The most that one image, and all rows, may cost.
        most_rows: Take only so many rows from its start; None takes all.

    Returns:
        A stream; its rows have `key`, `caption` from `.txt`, and the members of `.json`.

    Raises:
        ShardError: It is not there.
    """
    try:
        reader = BlockReader(shard.fs, shard.path)
    except OSError as error:
        raise ShardError(f"{shard.uri} cannot be read: {error}.") from error
    return BareTarShard(*unread(shard, limits, most_rows), reader)


def makes_row(suffix: str, size: int) -> bool:
    """Whether a member belongs to a sample: an image, or a text that is not too long."""
    return suffix in IMAGE_SUFFIXES or (suffix in ("json", *_TEXTS) and size <= MAX_TEXT_BYTES)


def split(name: str) -> tuple[str, str]:
    """Key and suffix of a member; a hidden file and one without a suffix have none."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem else ("", "")
