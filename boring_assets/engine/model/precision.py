"""The device and the precision that settings name."""

from typing import TYPE_CHECKING

from boring_assets.errors import ModelError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> "torch.device":
    """Returns the device that a setting names.

    Args:
        name: `auto` (CUDA where there is a device, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The device.

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
    """Returns the precision that a setting names.

    Args:
        name: `fp32`, `bf16`, `fp16`, `int8` (on the CPU only), or `auto`: bf16 where the device computes it
            faster than fp32, else fp32.
        device: The model's device.

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
