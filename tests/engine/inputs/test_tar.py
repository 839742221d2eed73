"""The tar reader against Python's own tarfile, and against tars that are damaged on purpose."""

import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from boring_assets.engine.inputs.read_ahead import RemoteReader
from boring_assets.engine.inputs.tar import BLOCK, LINK, MAX_NAME_BYTES, Member, read_members
from boring_assets.errors import ShardError
from tests.waiting import HANG_SECONDS

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NO_LIMIT = 2**40
END = b"\0" * BLOCK  # GNU tar takes one block of the two for the end as well
Entry = tuple[str, bytes, bytes]


def pack(entries: list[Entry], form: int, **options: object) -> bytes:
    """A tar of (name, type, content); what is no regular file has no content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **options) as tar:  # type: ignore[call-overload]
        for name, kind, data in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = "target/" + "t" * 150 if form != tarfile.USTAR_FORMAT else "target"
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def ours(data: bytes, block: int = 8 * 2**20, max_bytes: int = NO_LIMIT) -> list[Member]:
    fs = MemoryFileSystem()
    fs.pipe_file("/set/00000.tar", data)
    reader = RemoteReader(fs, "/set/00000.tar", block=block)
    try:
        members = list(read_members(reader, "memory:///set/00000.tar", max_bytes))
    finally:
        reader.close()
    for member in members:
        assert member.data in (None, data[member.offset : member.offset + member.size])
    return [member._replace(offset=0) for member in members]


def pythons(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            Member(m.name, m.size, tar.extractfile(m).read())  # type: ignore[union-attr]
            if m.isreg()
            else Member(m.name, 0, None, LINK)
            for m in tar
            if m.isreg() or m.islnk() or m.issym()
        ]


REG, OLD, CONT = tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE
EMPTY_KINDS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
MIXED: list[Entry] = [
    ("00000.jpg", REG, b"a" * 1000),
    ("00000.txt", REG, b""),
    ("some folder", tarfile.DIRTYPE, b""),
    ("a link", tarfile.SYMTYPE, b""),
    ("d" * 60 + "/" + "e" * 60 + "/" + "f" * 90, REG, b"prefix"),
    ("a hard link", tarfile.LNKTYPE, b""),
    ("été/写真 🎉.jpg", REG, b"x" * 512),
    ("a device", tarfile.CHRTYPE, b""),
    ("contiguous.jpg", CONT, b"y" * 513),
    ("old.jpg", OLD, b"z" * 511),
    ("last", REG, b"\0" * 2048),
]
LONG: list[Entry] = [
    ("n" * 101, REG, b"1"),
    ("n" * 257 + ".jpg", REG, b"2" * 700),
    ("deep/" * 300 + "写真.jpg", REG, b"3"),
    ("after.jpg", REG, b"4"),
]


@pytest.mark.parametrize("block", [1, 100, 512, 513, 4096, 8 * 2**20])
@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_of_tarfile(form: str, block: int) -> None:
    data = pack(MIXED + (LONG if form != "ustar" else []), FORMATS[form])
    members = ours(data, block)
    assert members == pythons(data)
    assert [member.size for member in members if not member.problem][:3] == [1000, 0, 6]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["gnu", "pax"]),
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=300),
            st.sampled_from([REG, REG, OLD, CONT, *EMPTY_KINDS]),
            st.binary(max_size=1500),
        ),
        max_size=8,
    ),
    st.integers(64, 4000),
    st.integers(0, 1500),
)
def test_any_tar_reads_as_tarfile_reads_it(form: str, entries: list[Entry], block: int, limit: int) -> None:
    entries = [(name, kind, b"" if kind in EMPTY_KINDS else data) for name, kind, data in entries]
    data = pack(entries, FORMATS[form])
    expected = pythons(data)
    assert ours(data, block) == expected
    kept = [m._replace(data=m.data if m.size <= limit else None) for m in expected]
    assert ours(data, block, limit) == kept


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 1), st.data())
def test_a_cut_tar_gives_whole_members_and_then_an_error(form: str, big: int, data: st.DataObject) -> None:
    whole = pack(MIXED if form == "ustar" else MIXED + LONG, FORMATS[form])
    cut = data.draw(st.integers(1, len(whole.rstrip(b"\0")) - 1))
    expected = pythons(whole)
    fs = MemoryFileSystem()
    fs.pipe_file("/cut.tar", whole[:cut])
    reader = RemoteReader(fs, "/cut.tar", block=700)
    got: list[Member] = []
    message = ""
    try:
        for member in read_members(reader, "memory:///cut.tar", 600 if big else NO_LIMIT):
            got.append(member)
    except ShardError as error:
        message = str(error)
    finally:
        reader.close()
    assert "memory:///cut.tar" in message, "rows of what is cut off would count as missing for ever"
    assert [(m.name, m.size) for m in got] == [(m.name, m.size) for m in expected[: len(got)]]


def _with_checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


def _header(kind: bytes, size: bytes) -> bytes:
    plain = bytearray(tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT))
    plain[124:136] = size.ljust(12, b"\0")
    plain[156:157] = kind
    return _with_checksum(bytes(plain))


def _pax(record: bytes) -> bytes:
    return _header(b"x", b"%o" % len(record)) + record + b"\0" * (-len(record) % BLOCK)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x1f\x8b" + b"gzip" * 300, id="not a tar"),
        pytest.param(b"<html>404</html>", id="shorter than a block"),
        pytest.param(pack(MIXED, tarfile.GNU_FORMAT)[:1500], id="cut inside a member"),
        pytest.param(pack(MIXED, tarfile.GNU_FORMAT)[:100], id="cut inside the first header"),
        pytest.param(pack(MIXED, tarfile.GNU_FORMAT).replace(b"00000.txt", b"00000.tyt"), id="checksum"),
        pytest.param(pack(MIXED[:1], tarfile.GNU_FORMAT)[:512] + b"\1" * 4096, id="garbage after a member"),
        pytest.param(_header(b"0", b"-1"), id="negative size"),
        pytest.param(_header(b"0", b"\xff" * 12), id="negative base-256 size"),
        pytest.param(_header(b"0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\0" * 7), id="size of an exabyte"),
        pytest.param(_header(b"0", b"9zz"), id="size that is no number"),
        pytest.param(_header(b"L", b"77777777777") + b"n" * 4096, id="name of 8 GiB"),
        pytest.param(_header(b"x", b"77777777777") + b"n" * 4096, id="pax header of 8 GiB"),
        pytest.param(pack(MIXED[:1], tarfile.GNU_FORMAT)[:1536], id="cut between two members"),
        pytest.param(pack(MIXED[:1], tarfile.GNU_FORMAT)[:1800], id="cut in the end mark"),
        pytest.param(b"", id="empty"),
        pytest.param(_pax(b"30 size=99999999999999999999\n\n") + _header(b"0", b"1"), id="pax size"),
    ],
)
def test_a_damaged_tar_is_an_error_that_names_it(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"memory:///set/00000\.tar"):
        ours(data)


@pytest.mark.parametrize("record", [b"9" * 6000 + b" path=evil\n", b"0 a=b\n", b"nonsense", b"99 path=cut\n"])
def test_nonsense_in_a_pax_header_is_passed_over(record: bytes) -> None:
    member = _header(b"0", b"3") + b"abc".ljust(BLOCK, b"\0")
    assert ours(_pax(record) + member + END) == [Member("x.jpg", 3, b"abc")]


def test_a_pax_header_of_tiny_records_is_read_in_linear_time() -> None:
    header = _pax(b"4 =\n" * (MAX_NAME_BYTES // 4))
    member = _header(b"0", b"3") + b"abc".ljust(BLOCK, b"\0")
    assert ours(header * 10 + member + END) == [Member("x.jpg", 3, b"abc")]


def test_sizes_in_base_256_are_read() -> None:
    size = 700
    data = _header(b"0", b"\x80" + size.to_bytes(11)) + b"q" * size + b"\0" * (-size % BLOCK) + END
    assert ours(data) == [Member("x.jpg", size, b"q" * size)]


def test_a_member_past_the_limit_is_passed_over_and_not_held() -> None:
    """Neither a long member nor a long tar is ever in memory as a whole."""
    asked: list[int] = []

    class Watched(MemoryFileSystem):
        cachable = False

        def cat_file(self, path: str, start: int = 0, end: int = 0, **_: object) -> bytes:  # type: ignore[override]
            asked.append(end - start)
            return super().cat_file(path, start, end)

    fs = Watched()
    entries = [("a.jpg", REG, b"1" * 10), ("big.jpg", REG, b"2" * 300_000), ("b.jpg", REG, b"3" * 10)]
    fs.pipe_file("/big.tar", pack(entries, tarfile.GNU_FORMAT))
    reader = RemoteReader(fs, "/big.tar", block=10_000)
    members = [member._replace(offset=0) for member in read_members(reader, "memory:///big.tar", 1000)]
    reader.close()
    assert members == [
        Member("a.jpg", 10, b"1" * 10),
        Member("big.jpg", 300_000, None),
        Member("b.jpg", 10, b"3" * 10),
    ]
    assert max(asked) == 10_000


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar command here")
@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_member_fails_alone(form: str) -> None:
    """The tar command can store files with holes; their neighbours are read all the same."""
    with tempfile.TemporaryDirectory() as folder:
        holes = Path(folder, "sparse.jpg")
        with holes.open("wb") as file:
            for part in range(40):
                file.seek(part * 65536)
                file.write(b"!" * 4096)
        for name in ("before.jpg", "sparse2.txt"):
            Path(folder, name).write_bytes(name.encode() * 100)
        names = ["before.jpg", "sparse.jpg", "sparse2.txt"]
        command = ["tar", "--sparse", f"--format={form}", "-cf", "all.tar", *names]
        subprocess.run(command, cwd=folder, check=True, timeout=HANG_SECONDS)
        data = Path(folder, "all.tar").read_bytes()
    found = {member.name: member.data for member in ours(data)}
    for name in ("before.jpg", "sparse2.txt"):
        assert found[name] == name.encode() * 100


def test_an_empty_tar_has_no_members() -> None:
    assert ours(b"\0" * 10240) == []
    assert ours(END) == []
