"""Waits for a condition. No test is judged by its speed: a limit only ends one that hangs."""

import time
from collections.abc import Callable
from typing import Any

HANG_SECONDS = 900
"""Longer than any step takes, on a busy machine too; pytest's own timeout is above it."""


def wait_for(
    holds: Callable[[], Any], what: str, show: Callable[[], Any] | None = None, every: float = 0.1
) -> Any:
    """Waits until a condition holds, and returns its value.

    Args:
        holds: The condition.
        what: What is waited for, for the message.
        show: Returns what the message shows of the state.
        every: Seconds between two looks.

    Raises:
        AssertionError: It does not hold after `HANG_SECONDS`.
    """
    end = time.monotonic() + HANG_SECONDS
    while not (value := holds()):
        if time.monotonic() > end:
            raise AssertionError(f"After {HANG_SECONDS} s, still not: {what}. {show() if show else ''}")
        time.sleep(every)
    return value
