"""A tar without a parquet beside it, as webdataset has them: `{key}.jpg`, `{key}.txt`, `{key}.json`.

Every image of the tar is a row, and its key is its name up to the last dot. Its caption and other columns
come from the text and JSON of the same key; of `0001.left.png` also from `0001.txt`, since webdataset's own
keys end at the first dot. Where a setting names the images' extension (`left.png`), each sample is one row.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from boring_assets.engine.inputs.blocks import BlockReader
from boring_assets.engine.inputs.columns import CAPTION_TEXT, missing_column
from boring_assets.engine.inputs.image_values import is_image
from boring_assets.engine.inputs.layouts import IMAGE_SUFFIXES, Image
from boring_assets.engine.inputs.streamed import MAX_TEXT_BYTES, Record, StreamedShard, caption_in, clean
from boring_assets.engine.inputs.tar import Member, open_tar, read_members, webdataset_name
from boring_assets.engine.inputs.texts import to_text
from boring_assets.engine.samples import ColumnNames, Failure, Reason
from boring_assets.errors import ShardError

_TEXT_EXTENSIONS = ("caption.txt", "txt", "cap", "caption", "text", "json")
_MAX_EXTENSIONS = 1000
_MOST_NOTES = 10


@dataclass
class TarRows:
    """The rows of a tar, by the names of its members as they come."""

    columns: ColumnNames
    keys: list[str] = field(default_factory=list)
    extensions: set[str] = field(default_factory=set)
    has_images: bool = False
    second: int = 0  # members that are a second image of their sample
    _samples: dict[str, int] = field(default_factory=dict)
    _rows_with_image: set[int] = field(default_factory=set)
    _text_keys: dict[str, None] = field(default_factory=dict)

    def add(self, name: str) -> tuple[int | None, str | None]:
        """Adds a member; returns the row that it is the image of, and the key that it is a text of."""
        sample, extension = webdataset_name(name)
        if not sample:
            return None, None
        if len(self.extensions) < _MAX_EXTENSIONS:
            self.extensions.add(extension)
        if self.columns.image:
            return self._add_to_sample(sample, extension)
        stem, _, suffix = name.removeprefix("./").rpartition(".")
        if suffix.lower() in IMAGE_SUFFIXES:
            self.has_images = True
            self.keys.append(stem)
            return len(self.keys) - 1, None
        if self._is_text(extension):
            self._text_keys[sample] = None
            return None, sample
        for known in _TEXT_EXTENSIONS:
            if extension.endswith(f".{known}"):  # of a name with more dots
                key = name.removeprefix("./")[: -len(known) - 1]
                self._text_keys[key] = None
                return None, key
        return None, None

    def _add_to_sample(self, sample: str, extension: str) -> tuple[int | None, str | None]:
        row = self._samples.get(sample)
        if row is None:
            row = self._samples[sample] = len(self.keys)
            self.keys.append(sample)
        if extension == self.columns.image.lower():
            self.has_images = True
            if row not in self._rows_with_image:
                self._rows_with_image.add(row)
                return row, None
            self.second += 1
        return None, sample if self._is_text(extension) else None

    def _is_text(self, extension: str) -> bool:
        return extension != "" and extension in (*_TEXT_EXTENSIONS, self.columns.caption.lower())

    def finish(self) -> None:
        """Adds a row for each text that belongs to no image."""
        if not self.columns.image:
            used = {key for row in self.keys for key in key_and_prefixes(row)}
            self.keys += [key for key in self._text_keys if key not in used]


def key_and_prefixes(key: str) -> list[str]:
    """A key, and what is left of it as one dot after another is taken away: `a/b.c.d`, `a/b.c`, `a/b`."""
    folder, slash, file = key.rpartition("/")
    parts = file.split(".")
    return [f"{folder}{slash}{'.'.join(parts[:count])}" for count in range(len(parts), 0, -1)]


@dataclass
class _Texts:
    """The other members of a key: captions by extension, and the values of the JSON."""

    captions: dict[str, str | None] = field(default_factory=dict)
    values: Record = field(default_factory=dict)


@dataclass
class WebdatasetShard(StreamedShard):
    """A tar of samples. Its rows have `key`, the caption, and what the JSON has."""

    _texts: dict[str, _Texts] = field(default_factory=dict, init=False)
    _passed_over: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._tar = TarRows(self.shard.columns)
        try:
            self._reader: BlockReader = open_tar(self.shard.fs, self.shard.path)
        except OSError as error:
            raise ShardError(f"{self.shard.uri} cannot be read: {error}.") from error

    def _read(self) -> Iterator[Image]:
        for member in read_members(self._reader, self.shard.uri, max(self.limits.bytes, MAX_TEXT_BYTES)):
            row, text_key = self._tar.add(member.name)
            if row is not None:
                self._count(self._tar.keys[row], rows=1)
                if self.max_rows is None or row < self.max_rows:
                    # Its own columns, which may say why it is absent, come later.
                    problem = Failure(Reason.MISSING_IMAGE, member.problem) if member.problem else None
                    yield row, problem or self.content(row, member)
            elif text_key is not None and member.size <= MAX_TEXT_BYTES:
                self._add_text(text_key, member.name, member.data or b"")
            elif text_key is None and self._is_unnamed_image(member):
                self._passed_over.setdefault(webdataset_name(member.name)[1], member.name)
        if not self._tar.has_images:
            raise self._no_images()
        if self._tar.second:
            count = self._tar.second
            self.notes.append(f"Images that are not the first of their sample, and not embedded: {count}.")
        for extension, name in self._passed_over.items():
            self.notes.append(
                f"Members such as {name!r} hold images that are not embedded. To embed those, set "
                f"BORING_IMAGE_COLUMN={extension}."
                if extension
                else f"Members such as {name!r} hold images that are not embedded: they have no extension."
            )

    def _is_unnamed_image(self, member: Member) -> bool:
        is_new = len(self._passed_over) < _MOST_NOTES and not self.shard.columns.image
        return is_new and bool(webdataset_name(member.name)[0]) and is_image((member.data or b"")[:64])

    def _add_text(self, key: str, name: str, data: bytes) -> None:
        texts = self._texts.setdefault(key, _Texts())
        extension = webdataset_name(name)[1]
        if extension.endswith("json") and extension != self.shard.columns.caption.lower():
            values = _parse_json(data)
            values.pop("key", None)
            texts.captions.setdefault("json", caption_in(values, self.shard.columns))
            if isinstance(values.get("caption"), str) and self.shard.columns.caption != "caption":
                del values["caption"]  # it is the caption, or a text member is
            new = _plain_values(values)
            texts.values = new | texts.values
            self._count(*new, *new.values(), texts.captions["json"])
        else:
            text = to_text(data)
            texts.captions.setdefault(extension, text)
            self._count(key, text)

    def _no_images(self) -> ShardError:
        columns, uri = self.shard.columns, self.shard.uri
        if columns.image:
            return ShardError(missing_column(columns.image, "image", self._tar.extensions, uri, "extension"))
        listed = ", ".join(sorted(self._tar.extensions)[:20]) or "nothing"
        return ShardError(
            f"The tar {uri} holds no image. It holds: {listed}. If one of these is an extension of images, "
            "name it with BORING_IMAGE_COLUMN; if it is not a shard, remove it from the input."
        )

    def _records(self) -> list[Record]:
        self._tar.finish()
        return [self._record(key) for key in self._tar.keys]

    def _first(self) -> tuple[str, ...]:
        return ("key",) if self.shard.columns.caption else ("key", CAPTION_TEXT)

    def _record(self, key: str) -> Record:
        captions: dict[str, str | None] = {}
        values: Record = {}
        for name in (key,) if self.shard.columns.image else key_and_prefixes(key):
            if texts := self._texts.get(name):
                captions = captions | {kind: text for kind, text in texts.captions.items() if text is not None
                                       and kind not in captions}  # fmt: skip
                values = texts.values | values
        from_json = captions.pop("json", None)
        if named := self.shard.columns.caption:  # an extension, or a name in the JSON
            own = {named: captions[named.lower()]} if named.lower() in captions else {}
            return {"key": key, **values, **own}
        return {"key": key, CAPTION_TEXT: next(iter(captions.values()), from_json), **values}

    def why_absent(self, row: int) -> str:  # noqa: D102
        return "the tar has no image of this key"

    def close(self) -> None:  # noqa: D102
        self._reader.close()


def _parse_json(data: bytes) -> Record:
    """The members of a JSON object; empty where the text is not an object."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return {clean(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def _plain_values(record: Record) -> Record:
    """Returns the values with lists and objects as JSON text."""
    return {
        name: json.dumps(value) if isinstance(value, list | dict) else clean(value)
        for name, value in record.items()
    }
