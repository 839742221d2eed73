"""What a writer that was killed has left behind is swept by the next one, and by nobody else."""

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest

from boring_assets.errors import StorageError
from boring_assets.storage import files
from boring_assets.storage.files import write_bytes
from boring_assets.storage.root import check_writable, open_root
from tests.seaweed import BUCKET, Seaweed
from tests.waiting import HANG_SECONDS, wait_for


def write_slowly(output: str, path: str, fifo: str) -> None:
    """Writes a file, and stops between its last byte and its appearing."""
    real = os.fsync

    def wait(descriptor: int) -> None:
        real(descriptor)
        Path(fifo).read_bytes()

    os.fsync = wait  # type: ignore[assignment]
    write_bytes(open_root(output), path, b"slow")


@pytest.fixture
def slow_writer(tmp_path: Path) -> object:
    """Starts a writer of a path that stands still, staged but not renamed."""
    context = multiprocessing.get_context("spawn")
    started = []

    def start(path: str) -> tuple[multiprocessing.process.BaseProcess, Path]:
        fifo = tmp_path / f"fifo-{len(started)}"
        os.mkfifo(fifo)
        before = set(staged(tmp_path))
        process = context.Process(target=write_slowly, args=(str(tmp_path / "out"), path, str(fifo)))
        process.start()
        started.append(process)
        wait_for(
            lambda: any(path.stat().st_size for path in set(staged(tmp_path)) - before),
            "the writer has begun",
        )
        return process, fifo

    yield start
    for process in started:
        process.kill()
        process.join()


def staged(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out" / ".staging").glob("*"))


def test_only_dead_writers_of_the_same_file_are_swept(tmp_path: Path, slow_writer: object) -> None:
    root = open_root(str(tmp_path / "out"))
    dead, _ = slow_writer("a/0.parquet")  # type: ignore[operator]
    alive, fifo = slow_writer("a/0.parquet")  # type: ignore[operator]
    other, _ = slow_writer("a/1.parquet")  # type: ignore[operator]
    for process in (dead, other):
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert len(staged(tmp_path)) == 3

    write_bytes(root, "a/0.parquet", b"new")
    assert (tmp_path / "out/a/0.parquet").read_bytes() == b"new"
    assert len(staged(tmp_path)) == 2, "the dead one's is gone; the living one's and the other file's stay"

    fifo.write_bytes(b"")
    alive.join(HANG_SECONDS)
    assert alive.exitcode == 0
    assert (tmp_path / "out/a/0.parquet").read_bytes() == b"slow"
    write_bytes(root, "a/1.parquet", b"new")
    assert staged(tmp_path) == []


def test_a_sweep_between_creating_and_locking_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = open_root(str(tmp_path / "out"))
    real, swept = files._lock, []

    def late(file: object) -> None:
        if not swept:
            swept.extend(staged(tmp_path))
            swept[0].unlink()
        real(file)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_lock", late)
    write_bytes(root, "0.parquet", b"whole")
    assert len(swept) == 1
    assert (tmp_path / "out/0.parquet").read_bytes() == b"whole"
    assert staged(tmp_path) == []


def test_a_killed_write_check_leaves_nothing(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    (tmp_path / ".write-check").write_bytes(b"left by a run that was killed")
    check_writable(root)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_an_upload_that_was_killed_are_given_back(s3_env: Seaweed) -> None:
    prefix = s3_env.new_prefix()
    fs, key = s3_env.filesystem(), prefix.removeprefix(f"s3://{BUCKET}/")
    for name in ("0.parquet", "0.parquet.other"):
        begun = fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=f"{key}/{name}")
        fs.call_s3(
            "upload_part", Bucket=BUCKET, Key=f"{key}/{name}", UploadId=begun["UploadId"], PartNumber=1,
            Body=bytes(2**20),
        )  # fmt: skip
    content = bytes(101 * 2**20)
    write_bytes(open_root(prefix), "0.parquet", content)
    assert fs.info(f"{prefix}/0.parquet")["size"] == len(content)
    left = fs.call_s3("list_multipart_uploads", Bucket=BUCKET, Prefix=key).get("Uploads", [])
    assert [upload["Key"] for upload in left] == [f"{key}/0.parquet.other"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
def test_a_read_only_output_is_named_and_untouched(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        root = open_root(str(disk))
        write_bytes(root, "0.parquet", b"before")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for write in (lambda: check_writable(root), lambda: write_bytes(root, "0.parquet", b"after")):
            with pytest.raises(StorageError, match="the filesystem is read-only"):
                write()
        assert (disk / "0.parquet").read_bytes() == b"before"
    finally:
        subprocess.run(["umount", disk], check=True)
