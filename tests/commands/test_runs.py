"""The program itself: its terminal, Ctrl-C, `kill -9`, and Dagster's home."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path

import dagster as dg
import pytest

from boring_assets.commands.runs import explain
from boring_assets.errors import SettingsError, StorageError
from boring_assets.instance.homes import open_instance
from tests.command_line import CommandLine
from tests.waiting import HANG_SECONDS, wait_for

SHARDS = 40
MAX_UNREPORTED = 6
"""Most shards that are written and whose events are not stored yet: see `engine.pipeline`."""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path)


def wait_for_shards(cli: CommandLine, process: subprocess.Popen[bytes], count: int) -> None:
    """Waits until a running program has committed so many shards."""
    wait_for(
        lambda: len(cli.stamps(Path("out"))) >= count or process.poll() is not None,
        f"{count} shards are committed",
        every=0.02,
    )
    assert process.poll() is None, process.communicate()


def interrupted(cli: CommandLine, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Ends a program's process group, as a terminal does, when it has committed some shards."""
    wait_for_shards(cli, process, 5)
    os.killpg(process.pid, number)


def check_the_rest_is_done(cli: CommandLine) -> None:
    """The next call does what is left, and only that."""
    before = cli.stamps(Path("out"))
    assert 5 <= len(before) < SHARDS
    said = cli("embed", "in", "out").stdout
    # Shards that were written but not yet told of are taken over; they count as embedded by this call.
    embedded = int(re.match(r"Shards    (\d+) embedded\n", said)[1])  # type: ignore[index]
    assert SHARDS - len(before) <= embedded <= SHARDS - len(before) + MAX_UNREPORTED
    after = cli.stamps(Path("out"))
    assert len(after) == SHARDS
    assert {key: after[key] for key in before} == before
    assert cli("status", "--input", "in", "--output", "out").stdout.split()[:2] == ["done", str(SHARDS)]


def test_ctrl_c_keeps_what_is_committed(cli: CommandLine) -> None:
    cli.sample_data("in", shards=SHARDS, samples=4)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with cli.start("embed", "in", "out", start_new_session=True, **pipes) as process:
        interrupted(cli, process, signal.SIGINT)
        out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert out == b""
    assert err == b"Interrupted. What is committed stays; the same command does the rest.\n"
    said = cli("status", "--input", "in", "--output", "out", code=4).stdout
    assert "running" not in said
    check_the_rest_is_done(cli)


def test_a_killed_call_leaves_no_run_unfinished(cli: CommandLine) -> None:
    cli.sample_data("in", shards=SHARDS, samples=4)
    with cli.start("embed", "in", "out", start_new_session=True, stdout=subprocess.DEVNULL) as process:
        interrupted(cli, process, signal.SIGKILL)
        process.wait(HANG_SECONDS)
    check_the_rest_is_done(cli)


def test_a_second_call_skips_the_shards_of_the_first(cli: CommandLine) -> None:
    cli.sample_data("in", shards=SHARDS, samples=4)
    with cli.start("embed", "in", "out", stdout=subprocess.PIPE) as process:
        wait_for_shards(cli, process, 1)
        said = cli("embed", "in", "out").stdout
        before = cli.stamps(Path("out"))
        process.communicate(timeout=HANG_SECONDS)
    # The second call starts in seconds; the first may be done by then.
    assert re.match(r"Left out  \d+ shards? in another run now: 000|Nothing to do", said)
    after = cli.stamps(Path("out"))
    assert {key: after[key] for key in before} == before
    assert process.returncode == 0
    assert len(after) == SHARDS
    assert cli("embed", "in", "out").stdout == f"Nothing to do: {SHARDS} shards embedded already.\n"


def test_a_terminal_shows_a_progress_bar(cli: CommandLine) -> None:
    cli.sample_data("in", "--broken", 1, shards=30, samples=20)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with cli.start("embed", "in", "out", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # how Linux says that nobody writes any more
                break
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "loading the model" in text
    counts = [(int(done), int(bad)) for done, bad in re.findall(r" (\d+)/600 images, (\d+) failed", text)]
    assert counts == sorted(counts)
    assert counts[-1] == (600, 30)
    assert len({done for done, _ in counts if 0 < done < 600}) >= 1
    assert re.search(r"\d+/600 images, \d+ failed \d+ images/s +0:00:\d\d", text)
    assert "Shards    30 embedded\r\n" in text
    assert "Images    600: 570 embedded, 30 failed\r\n" in text
    assert "Warning" not in text


def test_a_pipe_gets_only_plain_text(cli: CommandLine) -> None:
    cli.sample_data("in", "--broken", 1, shards=1)
    with cli.start("embed", "in", "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    assert err == b""
    assert not set(out) & (set(range(32)) - {10})
    assert out.startswith(b"Shards    1 embedded\nImages    8: 7 embedded, 1 failed\n")
    with cli.start("embed", "nowhere", "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, out, err.count(b"\n")) == (1, b"", 1)


def test_without_a_dagster_home_each_output_has_its_own(cli: CommandLine) -> None:
    del cli.env["DAGSTER_HOME"]
    cli.env["HOME"] = str(cli.folder)
    cli.sample_data("in", shards=2, samples=3)
    cli.sample_data("in2", "--first-shard", 5, shards=1, samples=3)
    said = cli("embed", "in", "a/out").stdout
    home = re.search(r"DAGSTER_HOME=(\S+)", said)
    assert home
    assert Path(home[1]).parent == cli.folder / ".boring_assets"
    assert Path(home[1]).name.startswith("out-")
    cli("embed", "in2", "b/out")
    assert len(list((cli.folder / ".boring_assets").iterdir())) == 2
    assert cli("status", "--input", "in", "--output", "a/out").stdout.split() == [
        "done",
        "2",
        "00000,",
        "00001",
    ]
    assert cli("status", "--input", "in2", "--output", "b/out").stdout.split() == ["done", "1", "00005"]
    assert cli("embed", "in", str(cli.folder / "a/out/")).stdout.startswith("Nothing to do")


def test_a_home_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(
        SettingsError, match=r"DAGSTER_HOME .*/file/home cannot be used .* Set it to a folder"
    ):
        open_instance("out")


def test_a_home_with_the_removed_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    storage = "storage:\n  custom: {module: boring_assets.instance.local_storage, class: LocalStorage}\n"
    (tmp_path / "dagster.yaml").write_text(storage)
    with pytest.raises(SettingsError, match="Delete the section `storage` from that file"):
        open_instance("out")


def test_an_unexpected_error_shows_its_cause_and_where_the_trace_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/my home")

    @dg.op
    def write(context: dg.OpExecutionContext) -> None:
        try:
            raise OSError(28, "No space left on device", "/data/out")
        except OSError as error:
            if context.run.tags.get("expected"):
                raise StorageError("Cannot write /data/out: the disk is full.") from error
            raise RuntimeError("something of a library") from error

    @dg.job
    def job() -> None:
        write()

    result = job.execute_in_process(raise_on_error=False)
    error = explain(result).error
    assert error.startswith(
        f"Run {result.run_id} failed: OSError: [Errno 28] No space left on device: '/data/out'. "
    )
    assert "DAGSTER_HOME='/my home' dagster dev" in error
    assert error.endswith(f"/runs/{result.run_id}")
    assert "\n" not in error

    result = job.execute_in_process(raise_on_error=False, tags={"expected": "yes"})
    assert explain(result).error == "Cannot write /data/out: the disk is full."
