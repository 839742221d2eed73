"""Images that must never be embedded: a list of keys, URLs and SHA-256 digests."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.engine.samples import Failure, Reason
from boring_assets.errors import SettingsError

COLUMNS = ("key", "url", "sha256")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Exclusions:
    """The images that must not be embedded; empty by default.

    Attributes:
        keys: Keys of samples.
        urls: Their URLs, compared letter by letter.
        digests: SHA-256 of encoded images, in lower-case hexadecimal digits.
    """

    keys: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.keys or self.urls or self.digests)

    def find_rows(self, rows: pa.Table, columns: Mapping[str, str]) -> dict[int, Failure]:
        """Returns the excluded rows of a table, with the failure that is recorded for each.

        `columns` says which are its `url`, its `key` and, if not of that name, its `sha256`.
        """
        named = {"sha256": "sha256", **columns}
        found: dict[int, Failure] = {}
        for name, listed in zip(COLUMNS, (self.keys, self.urls, self.digests), strict=True):
            if listed and named.get(name) in rows.column_names:
                for row, value in enumerate(rows[named[name]].to_pylist()):
                    if value is not None and _text(value, name) in listed:
                        found.setdefault(row, _excluded(name))
        return found

    def find_image(self, image: bytes) -> Failure | None:
        """Returns the failure to record for an excluded image, by its bytes; None for any other image."""
        if self.digests and hashlib.sha256(image).hexdigest() in self.digests:
            return _excluded("sha256")
        return None


def _excluded(name: str) -> Failure:
    return Failure(Reason.EXCLUDED, f"its {name} is in the list of excluded images (BORING_EXCLUDE)")


def _text(value: object, name: str) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text.lower() if name == "sha256" else text


def parse_exclusions(data: bytes, uri: str) -> Exclusions:
    """Reads a list of excluded images.

    Args:
        data: A parquet file with any of the columns `key`, `url` and `sha256`; or text in UTF-8 with one key,
            URL or SHA-256 a line, where empty lines and lines that begin with `#` are ignored.
        uri: Where it was read from, for messages.

    Raises:
        SettingsError: It is neither, or a digest is not a SHA-256.
    """
    if data[:4] == b"PAR1":
        return _from_parquet(data, uri)
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"BORING_EXCLUDE names {uri}, which is neither parquet nor text in UTF-8 ({error.reason} at byte "
            f"{error.start}). Expected: one key, URL or SHA-256 a line."
        ) from error
    entries = frozenset(line for line in lines if line and not line.startswith("#"))
    digests = frozenset(entry.lower() for entry in entries if _DIGEST.fullmatch(entry))
    return Exclusions(entries, entries, digests)


def _from_parquet(data: bytes, uri: str) -> Exclusions:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = [name for name in COLUMNS if name in file.schema_arrow.names]
        table = file.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"BORING_EXCLUDE names {uri}, which is damaged parquet ({error}).") from error
    if not names:
        raise SettingsError(
            f"BORING_EXCLUDE names {uri}, which has the columns {file.schema_arrow.names}. Expected: at "
            f"least one of {', '.join(COLUMNS)}."
        )
    listed = {
        name: frozenset(_text(value, name) for value in table[name].to_pylist() if value is not None)
        for name in names
    }
    for digest in listed.get("sha256", ()):
        if not _DIGEST.fullmatch(digest):
            raise SettingsError(
                f"BORING_EXCLUDE names {uri}, whose column sha256 holds {digest[:80]!r}. Expected: 64 "
                "hexadecimal digits."
            )
    return Exclusions(*(listed.get(name, frozenset()) for name in COLUMNS))
