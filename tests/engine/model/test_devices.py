"""Which device a process takes: asked from real processes, whose locks end with them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boring_assets.engine.model.devices import devices, lease
from boring_assets.errors import ModelError

CODE = """
import os, sys
from boring_assets.engine.model.devices import lease
taken = lease(sys.argv[1])
again = lease(sys.argv[1])
assert again is taken
visible = os.environ.get("CUDA_VISIBLE_DEVICES")
print(taken.name, taken.torch_name, taken.of, taken.shared, visible, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(setting: str) -> Iterator[str]:
    """A process that takes a device and keeps it; gives what it says of it."""
    command = [sys.executable, "-c", CODE, setting]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of this test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_each_process_has_a_device_of_its_own_until_it_dies() -> None:
    setting = "cpu:0, cpu:1"
    with holder(setting) as first, holder(setting) as second:
        assert {first, second} == {"cpu:0 cpu:0 2 False None", "cpu:1 cpu:1 2 False None"}
        with holder(setting) as third, holder(setting) as fourth:
            assert {third, fourth} == {"cpu:0 cpu:0 2 True None", "cpu:1 cpu:1 2 True None"}
    with holder(setting) as after:
        assert after == "cpu:0 cpu:0 2 False None"


def test_torch_sees_only_the_cuda_device_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    with holder("auto") as first, holder("cuda") as second, holder("cuda:1") as third:
        assert first == "cuda:2 cuda 2 False 2"
        assert second == "cuda:GPU-5 cuda 2 False GPU-5"
        assert third == "cuda:GPU-5 cuda 1 True GPU-5"


def test_without_a_choice_nothing_is_locked(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for setting in ("auto", "cpu", "cuda", "cuda:99"):
        with holder(setting) as one, holder(setting) as two:
            assert one == two == f"{setting} {setting} 1 False"
    assert list(locks.iterdir()) == []


def test_a_device_of_several_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert devices("cuda:1,cpu") == ["cuda:1", "cpu"]
    with pytest.raises(
        ModelError, match=r"'cuda:0,cuda:2', but this machine shows 2 .*cuda:0, cuda:1.* Name"
    ):
        devices("cuda:0,cuda:2")


def test_a_folder_of_another_user_is_refused(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(locks))
    (locks / f"boring_assets-{os.getuid()}").symlink_to(locks)
    with pytest.raises(ModelError, match="belongs to another user"):
        lease("cpu:0,cpu:9")
