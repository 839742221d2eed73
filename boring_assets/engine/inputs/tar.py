"""The members of a tar, streamed: headers are parsed in memory and nothing is ever extracted to disk.

The format is POSIX ustar with the GNU and pax extensions for long names and large sizes, as described in
POSIX.1-2017 `pax` and in GNU tar's manual ("Basic Tar Format"). Python's own `tarfile` reads the same but
costs about ten times as long for each member, which matters at three small members an image.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
from fsspec import AbstractFileSystem

from boring_assets.engine.inputs.blocks import BlockReader, Start, read_start
from boring_assets.engine.inputs.read_ahead import OBJECT_BLOCK, open_blocks
from boring_assets.errors import ShardError

BLOCK = 512
_ADLER = 65521
# A pax or GNU long-name header holds a name; anything longer is an attack or damage.
MAX_NAME_BYTES = 1 << 20
_PIECE = 2**20
LINK = "the member is a link, which is not followed; pack the tar with --dereference --hard-dereference"
SPARSE = "the member is a sparse file, which is not read; pack the tar without --sparse"


class Member(NamedTuple):
    r"""One file of a tar.

    Attributes:
        name: Its name, as written; bytes that are not UTF-8 as `\xe9`.
        size: Its size in bytes.
        data: Its content, or None where it is longer than was asked for.
        problem: Why its content is not read; empty for a regular file.
        offset: Where its content begins in the tar.
    """

    name: str
    size: int
    data: bytes | None
    problem: str = ""
    offset: int = 0


def webdataset_name(name: str) -> tuple[str, str]:
    """Returns key and lower-case extension, split at the first dot as in webdataset; empty if hidden."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else ("", "")


class _DecompressedReader(BlockReader):
    """The content of a gzip or zstd file. Reading raises OSError if it is damaged."""

    def __init__(self, path: str, compressed: BlockReader, codec: str) -> None:
        super().__init__(path)
        self._compressed = compressed
        self._stream = pa.CompressedInputStream(pa.PythonFile(compressed, mode="r"), codec)

    def close(self) -> None:
        self._compressed.close()

    def _next_block(self) -> bytes:
        return self._stream.read(_PIECE)


def open_tar(fs: AbstractFileSystem, path: str, start: Start | None = None) -> BlockReader:
    """Opens a tar for reading, decompressed by its name's ending; raises OSError if it is not there."""
    reader = open_blocks(fs, path, start or read_start(fs, path, OBJECT_BLOCK))
    if path.endswith((".gz", ".tgz")):
        return _DecompressedReader(path, reader, "gzip")
    return _DecompressedReader(path, reader, "zstd") if path.endswith(".zst") else reader


def read_members(reader: BlockReader, uri: str, max_bytes: int) -> Iterator[Member]:
    """Yields the files of a tar in its own order; folders, devices and pipes are skipped.

    Content longer than `max_bytes` is skipped too, not held in memory.

    Raises:
        ShardError: The tar is damaged or ends early. A tar that was cut between two members lacks the end
            mark, two blocks of zeros; one block is accepted.
    """
    long_name, long_size, sparse, offset = "", -1, False, 0
    while (header := reader.read(BLOCK)).strip(b"\0"):
        offset += BLOCK
        kind, name, size = _parse_header(header, uri)
        if kind in b"xLgKX":
            body = _read_body(reader, size, uri, MAX_NAME_BYTES)
            if body is None:
                raise ShardError(f"The tar {uri} has an extended header of {size} bytes: it is damaged.")
            offset += size + -size % BLOCK
            if kind == b"L"[0]:
                long_name = _decode(body.rstrip(b"\0"))
            elif kind in b"xX":
                records = _parse_pax(body)
                if path := records.get(b"GNU.sparse.name") or records.get(b"path"):
                    long_name = _decode(path)
                with suppress(ValueError):
                    long_size = max(0, int(records.get(b"size", b"")))
                sparse = sparse or any(record.startswith(b"GNU.sparse.") for record in records)
            continue
        if long_size >= 0:
            size = long_size
        name = long_name or name
        if kind in b"0\x007" and not sparse:
            yield Member(name, size, _read_body(reader, size, uri, max_bytes), "", offset)
            offset += size + -size % BLOCK
        elif kind in b"12":
            yield Member(name, 0, None, LINK)
        elif kind not in b"3456":  # devices, folders and pipes have no content
            # The map of holes of a GNU sparse file may continue in blocks that its size does not include.
            more = kind == b"S"[0] and header[482]
            while more:
                more = reader.read(BLOCK).ljust(BLOCK, b"\0")[504]
                offset += BLOCK
            _read_body(reader, size, uri, 0)
            offset += size + -size % BLOCK
            if sparse or kind == b"S"[0]:
                yield Member(name, 0, None, SPARSE)
        long_name, long_size, sparse = "", -1, False
    if len(header) < BLOCK:
        raise _ends_early(uri, "without its end mark")


def _read_body(reader: BlockReader, size: int, uri: str, most: int) -> bytes | None:
    padding = -size % BLOCK
    if size > most:
        if reader.skip(size + padding) < size:
            raise _ends_early(uri)
        return None
    body = reader.read(size)
    if len(body) < size:
        raise _ends_early(uri)
    reader.skip(padding)
    return body


def _ends_early(uri: str, where: str = "in the middle of a member") -> ShardError:
    return ShardError(f"The tar {uri} ends {where}. Upload it again, or wait until it is whole.")


def _hint(header: bytes) -> str:
    """What to do, if the first bytes say it."""
    for magic, suffix in ((b"\x1f\x8b", ".tar.gz"), (b"\x28\xb5\x2f\xfd", ".tar.zst")):
        if header.startswith(magic):
            return f" It is compressed: let its name end in {suffix}."
    return " Write it again, or remove it from the input."


def _parse_header(header: bytes, uri: str) -> tuple[int, str, int]:
    """Kind, name and size of a member; its checksum is verified."""
    try:
        checksum = int(header[148:156].strip(b" \0") or b"-1", 8)
        # The lower half of Adler-32 is 1 and the sum of all bytes, modulo 65,521; it is computed in C.
        total = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
        if len(header) < BLOCK or (checksum + 1) % _ADLER != total:
            raise ValueError
        # A set high bit says base-256 (GNU), for members past 8 GiB.
        size = (
            int.from_bytes(header[125:136])
            if header[124] & 0x80
            else int(header[124:136].strip(b" \0") or b"0", 8)
        )
        if size < 0:
            raise ValueError
    except ValueError:
        raise ShardError(
            f"{uri} is not a tar, or is damaged: a header's checksum or size is wrong.{_hint(header)}"
        ) from None
    name = _decode(header[:100].split(b"\0", 1)[0])
    if header[257:263] == b"ustar\0" and header[345]:
        name = _decode(header[345:500].split(b"\0", 1)[0]) + "/" + name
    return header[156], name, size


def _decode(name: bytes) -> str:
    """A name as text; two names stay two where they are not UTF-8."""
    return name.decode("utf-8", "backslashreplace")


def _parse_pax(body: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: lines of `LENGTH KEY=VALUE`."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        number, blank, _ = body[at : at + 10].partition(b" ")
        length = int(number) if number.isdigit() and blank else 0
        if not len(number) < length <= len(body) - at:
            break
        key, _, value = body[at + len(number) + 1 : at + length - 1].partition(b"=")
        records[key] = value
        at += length
    return records
