"""Which device a run computes on, and in which precision: concurrent runs of one machine take a device each.

A process locks a file for the device that it takes. The kernel ends the lock with the process, however that
ends. The locks are a user's own, in the folder for temporary files, and hold across all of its Dagster homes.
"""

import fcntl
import itertools
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from boring_assets.errors import ModelError

if TYPE_CHECKING:
    import torch

_CUDA = "cuda:"
_held: dict[str, "Lease"] = {}


@dataclass(frozen=True)
class Lease:
    """A device that this process has locked until it ends.

    Attributes:
        name: What people know it by, e.g. `cuda:3`, by its number among all devices of the machine.
        torch_name: What torch knows it by in this process.
        of: Among how many devices it was chosen; the machine's cores are shared out among so many.
        shared: Whether other processes had taken every device before, so that it has two users now.
        lock: What keeps it; None where there was no choice, and `name` is what the setting says.
    """

    name: str
    torch_name: str
    of: int = 1
    shared: bool = False
    lock: IO[bytes] | None = None


def devices(setting: str) -> list[str]:
    """Returns the devices that a setting allows, without loading torch.

    Args:
        setting: `auto`, `cpu`, `cuda`, `cuda:N`, or several of them with commas between.

    Returns:
        Names; one alone where there is no choice, and for `auto` where there is no CUDA device.

    Raises:
        ModelError: One of several names a CUDA device that is not there.
    """
    there = [f"{_CUDA}{device}" for device in _cuda_devices()]
    if setting in ("auto", "cuda"):
        return there or [setting]
    named = [name.strip() for name in setting.split(",")]
    known = {f"{_CUDA}{number}": device for number, device in enumerate(there)}
    for name in named:
        if len(named) > 1 and name.startswith(_CUDA) and name not in known:
            raise ModelError(
                f"BORING_DEVICE is {setting!r}, but this machine shows {len(there)} CUDA devices "
                f"({', '.join(known)}). Name only those, or use auto."
            )
    return [known.get(name, name) for name in named]


def lease(setting: str) -> Lease:
    """Locks the first device that no other process of this user has locked.

    Where all are taken, the one with the fewest users is shared. For CUDA this must come before torch looks
    for devices: from then on it sees the one that was taken. The same setting gives the same device again.

    Raises:
        ModelError: A device is not there, or the lock's folder cannot be used.
    """
    if setting not in _held:
        choice = devices(setting)
        known = len(choice) > 1 or choice[0].removeprefix(_CUDA) in _cuda_devices()
        _held[setting] = _take(choice) if known else Lease(choice[0], choice[0])
    return _held[setting]


def _take(choice: list[str]) -> Lease:
    folder = _folder()
    for users in itertools.count():
        for name in choice:
            lock = (folder / f"{name.replace('/', '-')}.{users}").open("wb")
            try:
                # A record lock: unlike flock's, it is not shared with children, so it ends with this process.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # POSIX lets a lock that is held answer either
                lock.close()
                continue
            return Lease(name, _show_alone(name), len(choice), users > 0, lock)
    raise AssertionError("unreachable: any number of processes may share a device")


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"boring_assets-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ModelError(f"{folder}, which holds the locks of devices, belongs to another user. Remove it.")
    return folder


def _show_alone(name: str) -> str:
    """Makes one CUDA device visible to torch, which allocates memory on each that it sees."""
    if not name.startswith(_CUDA):
        return name
    os.environ["CUDA_VISIBLE_DEVICES"] = name.removeprefix(_CUDA)
    return "cuda"


def _cuda_devices() -> list[str]:
    """Returns the names in CUDA_VISIBLE_DEVICES of the devices that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if listed.returncode == 0 else []


def pick_device(name: str) -> "torch.device":
    """Returns the device that a setting names; `auto` is CUDA where there is a device, else the CPU.

    Raises:
        ModelError: There is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"BORING_DEVICE is {name!r}; expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"BORING_DEVICE is {name!r}, but this machine shows {torch.cuda.device_count()} CUDA devices. "
            "Use auto or cpu, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"BORING_DEVICE is {name!r}; expected auto, cpu, cuda or cuda:N.")
    return device


def pick_precision(name: str, device: "torch.device") -> str:
    """Returns the precision: `fp32`, `bf16`, `fp16` or, on the CPU only, `int8`.

    `auto` is bf16 where the device computes it faster than fp32, else fp32.

    Raises:
        ModelError: The device has no such precision.
    """
    import torch

    if name == "int8" and device.type != "cpu":
        raise ModelError(
            f"BORING_PRECISION is int8, which runs on the CPU only, and the device is {device}. Set "
            "BORING_DEVICE to cpu, or use bf16 or fp16."
        )
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def torch_dtype(precision: str) -> "torch.dtype":
    """Returns the type of a model's weights. In int8 the model keeps fp32; ONNX Runtime has a copy of it."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
