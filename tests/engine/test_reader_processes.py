"""Processes that read and decode shards give what threads give, whatever happens to a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from boring_assets.engine import reader_process, reader_processes
from boring_assets.engine.decoding import decoders
from boring_assets.engine.decoding.arena import Arena
from boring_assets.engine.decoding.decoders import Decoded
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.pipeline import EmbeddedShard, FailedShard, Options, Progress, embed_shards
from boring_assets.engine.samples import Failure, Reason, Shard
from boring_assets.errors import ModelError
from boring_assets.storage.root import open_root
from tests.engine.kinds import jpeg, shard_at, write_tar
from tests.engine.shards import assert_same, embedded, make_shard
from tests.seaweed import Seaweed
from tests.waiting import wait_for

PREVIEWS = Options(previews=3)
PROCESSES = Options(decode_workers=8, previews=3)
DEADLY = b"an image at which a decoder dies, as at a fault in native code"
_decode_chunk = decoders.decode_chunk


def bare_tar(folder: Path, name: str, count: int) -> Shard:
    """A tar without a parquet, whose columns are known at its end."""
    write_tar(folder / f"{name}.tar", [(f"{row:03d}.jpg", jpeg(row)) for row in range(count)])
    return shard_at(folder / f"{name}.tar")


def by_key(results: list[EmbeddedShard | FailedShard]) -> dict[str, EmbeddedShard]:
    return {one.shard.key: one for one in embedded(results)}


def assert_equal(found: list[EmbeddedShard | FailedShard], wanted: list[EmbeddedShard | FailedShard]) -> None:
    """The same shards, in any order, with the same answers."""
    mine, theirs = by_key(found), by_key(wanted)
    assert mine.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert mine[key].rows.equals(expected.rows)
        assert mine[key].embedded.tolist() == expected.embedded.tolist()
        assert mine[key].failures == expected.failures
        assert mine[key].image_bytes == expected.image_bytes
        assert [row for row, _ in mine[key].previews] == [row for row, _ in expected.previews]
        assert_same(mine[key].embeddings, expected.embeddings)


def running_processes() -> list[psutil.Process]:
    """The processes that were forked from the server."""
    me = psutil.Process()
    return [child for child in me.children(recursive=True) if child.ppid() != me.pid]


@pytest.mark.parametrize("room", [2**30, 0])
def test_processes_give_what_threads_give(
    encoder: Encoder, many: list[Shard], tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where shared memory is too small for the pixels."""
    monkeypatch.setattr(reader_processes, "_shared_memory_left", lambda: room)
    images = [jpeg(1), b"", None, b"<html>", jpeg(2)[:200], jpeg(3)]
    shards = [
        *many[:7],
        make_shard(tmp_path, "broken", images),
        make_shard(tmp_path, "empty", []),
        bare_tar(tmp_path, "bare", 25),
    ]
    progress = Progress()
    found = list(embed_shards(shards, encoder, PROCESSES, progress=progress))
    assert_equal(found, list(embed_shards(shards, encoder, PREVIEWS)))
    assert progress.embedded == sum(len(one.embedded) for one in embedded(found))
    assert progress.failed == 4


def test_shards_in_object_storage_are_read_with_the_credentials_of_the_environment(
    encoder: Encoder, many: list[Shard], s3: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    root = open_root(s3.new_prefix())
    for path in Path(many[0].root).iterdir():
        root.fs.pipe_file(f"{root.path}/{path.name}", path.read_bytes())
    shards = [shard_at(f"{root.path}/{shard.key}.parquet", root.path, root.fs) for shard in many[:10]]
    found = list(embed_shards(shards, encoder, PROCESSES))
    assert_equal(found, list(embed_shards(many[:10], encoder, PREVIEWS)))


def test_a_shard_that_cannot_be_read_fails_alone(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "html.parquet").write_bytes(b"<html>" * 100)
    good = make_shard(tmp_path, "good", [jpeg(row) for row in range(20)])
    shards = [shard_at(tmp_path / "html.parquet"), good, shard_at(tmp_path / "missing.parquet")]
    results = list(embed_shards(shards, encoder, PROCESSES))
    failed = [one for one in results if isinstance(one, FailedShard)]
    assert sorted(one.shard.key for one in failed) == ["html", "missing"]
    assert all(f"{one.shard.key}.parquet" in str(one.error) for one in failed)
    assert list(by_key([one for one in results if one not in failed])) == ["good"]


def _die_at_the_deadly(images: Sequence[bytes], *rest: object) -> Decoded:
    if DEADLY in images:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _decode_chunk(images, *rest)  # type: ignore[arg-type]


def serve_or_die(*arguments: object) -> None:
    """A reader process with a decoder that has a fatal fault; runs in the process."""
    decoders.decode_chunk = _die_at_the_deadly
    reader_process.serve(*arguments)  # type: ignore[arg-type]


def die_at_once(*arguments: object) -> None:
    """A reader process that does not start."""
    os.kill(os.getpid(), signal.SIGKILL)


def serve_or_die_when_opening(*arguments: object) -> None:
    """A reader process that dies when it opens the shard `damaged`, as at a fault in a library that reads."""
    open_shard = reader_process.Reader._open

    def die(reader: reader_process.Reader, shard: Shard, *rest: object) -> object:
        if shard.key == "damaged":
            os.kill(os.getpid(), signal.SIGSEGV)
        return open_shard(reader, shard, *rest)  # type: ignore[arg-type]

    reader_process.Reader._open = die  # type: ignore[method-assign, assignment]
    reader_process.serve(*arguments)  # type: ignore[arg-type]


def test_an_image_that_kills_its_decoder_fails_alone(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_processes, "serve", serve_or_die)
    images: list[bytes | None] = [jpeg(row) for row in range(40)]
    deadly = [*images[:21], DEADLY, *images[22:30], DEADLY]
    shards = [make_shard(tmp_path, f"good-{n}", images) for n in range(6)]
    shards.insert(2, make_shard(tmp_path, "deadly", deadly))
    progress = Progress()
    results = by_key(list(embed_shards(shards, encoder, PROCESSES, progress=progress)))
    assert len(results) == 7
    died = Failure(Reason.DECODE_ERROR, "the decoding process died at this image")
    assert {key: one.failures for key, one in results.items() if one.failures} == {
        "deadly": {21: died, 30: died}
    }
    assert_same(results["deadly"].embeddings[:20], results["good-0"].embeddings[:20])
    assert (progress.embedded, progress.failed) == (6 * 40 + 29, 2)


def test_a_killed_process_loses_nothing(encoder: Encoder, many: list[Shard]) -> None:
    """Killed several times, at whatever it is doing."""
    found, progress = [], Progress()
    for one in embed_shards(many, encoder, Options(decode_workers=8), progress=progress):
        found.append(one)
        if len(found) in (1, 8, 15):
            for process in running_processes()[:1]:
                process.kill()
    wanted = list(embed_shards(many, encoder))
    assert_equal(found, wanted)
    assert progress.embedded == sum(len(one.embedded) for one in embedded(wanted))


def test_a_shard_that_kills_its_reader_fails_alone(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_processes, "serve", serve_or_die_when_opening)
    shards = [make_shard(tmp_path, name, [jpeg(1)] * 20) for name in ("a", "damaged", "b", "c")]
    results = list(embed_shards(shards, encoder, PROCESSES))
    (failed,) = [one for one in results if isinstance(one, FailedShard)]
    assert failed.shard.key == "damaged"
    assert "damaged.parquet has died 4 times" in str(failed.error)
    assert sorted(by_key([one for one in results if one is not failed])) == ["a", "b", "c"]


def test_processes_that_cannot_start_are_reported(
    encoder: Encoder, many: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_processes, "serve", die_at_once)
    with pytest.raises(ModelError, match="BORING_DECODE_WORKERS"):
        list(embed_shards(many, encoder, PROCESSES))


def leave_early(encoder: Encoder, shards: list[Shard]) -> None:
    results = embed_shards(shards, encoder, PROCESSES)
    next(results)
    results.close()  # type: ignore[attr-defined]


def fail_to_write(encoder: Encoder, shards: list[Shard]) -> None:
    def write(result: EmbeddedShard) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        list(embed_shards(shards, encoder, PROCESSES, then=write))


@pytest.mark.parametrize("end", [leave_early, fail_to_write])
def test_a_run_that_ends_early_leaves_no_process_and_no_memory(
    encoder: Encoder,
    many: list[Shard],
    end: Callable[[Encoder, list[Shard]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arenas: list[str] = []

    def create(size: int) -> Arena:
        arena = Arena.create(size)
        arenas.append(arena.name)
        return arena

    monkeypatch.setattr(reader_processes, "Arena", SimpleNamespace(create=create))
    end(encoder, many)
    wait_for(lambda: not running_processes(), "the processes have ended", running_processes)
    assert arenas
    assert not any((Path("/dev/shm") / name).exists() for name in arenas)


EMBED_FOREVER = """
import itertools, sys
from pathlib import Path
from types import SimpleNamespace
from boring_assets.engine import reader_processes
from boring_assets.engine.model.encoder import Encoder
from boring_assets.engine.model.load import load_model
from boring_assets.engine.pipeline import Options, embed_shards
from tests.engine.kinds import shard_at

if __name__ == "__main__":
    names, serve = [], reader_processes._ReaderProcess.__init__

    def start(reader_process, *arguments):
        serve(reader_process, *arguments)
        names.append(reader_process._arena.name)

    reader_processes._ReaderProcess.__init__ = start
    shard = shard_at(Path(sys.argv[1]))
    encoder = Encoder(load_model("boring-tiny"), device="cpu")
    for number, _ in enumerate(embed_shards(itertools.repeat(shard), encoder, Options(decode_workers=8))):
        if number == 3:
            print(*names, flush=True)
"""


def test_nothing_outlives_a_killed_run(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, "a", [jpeg(row) for row in range(20)])
    arguments = [sys.executable, "-c", EMBED_FOREVER, shard.path]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        memory = [Path("/dev/shm") / name for name in run.stdout.readline().split()]
        processes = psutil.Process(run.pid).children(recursive=True)
        assert memory
        assert all(path.exists() for path in memory)
        assert len(processes) >= 3
        run.kill()

    def left() -> list[object]:
        return [one for one in processes if one.is_running()] + [path for path in memory if path.exists()]

    wait_for(lambda: not left(), "processes and memory are gone", left)
