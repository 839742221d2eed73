"""Imports open_clip without torch's compiler: a third of the time until the first batch.

torchvision and timm, which open_clip imports, import `torch._dynamo` (with sympy, some 900 modules) for
functions that are compiled or decorated. Nothing is compiled here. Whoever calls `torch.compile` later gets
the real compiler.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_lock = threading.Lock()


def import_open_clip() -> Any:
    """Returns the module open_clip."""
    with _lock:
        if "open_clip" not in sys.modules and _COMPILER not in sys.modules:
            try:
                with _without_compiler():
                    importlib.import_module("open_clip")
            except (ImportError, AttributeError):  # another version of a library needs more of the compiler
                pass
        return importlib.import_module("open_clip")


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Puts a placeholder in the place of the compiler, with what libraries use of it while imported."""
    import torch  # noqa: F401  (it must not find the placeholder)

    compiler, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
    compiler.__path__ = []
    compiler.disable = _disable  # type: ignore[attr-defined]
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    placeholders = {_COMPILER: compiler, utils.__name__: utils}
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name, module in placeholders.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """Stands for `torch._dynamo.disable`: the function is not kept from being compiled."""
    return (lambda decorated: decorated) if function is None else function


def _is_compile_supported(device_type: str) -> Any:
    """Calls the function of this name of the real compiler."""
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)
