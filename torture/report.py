"""Prints the result of a torture test, and sets the exit code."""

import sys
from collections.abc import Mapping


def finish(title: str, figures: Mapping[str, object], violations: list[str]) -> None:
    """Prints figures and violations, and ends the process; the exit code is 1 if there are violations."""
    print(f"\n{title}")
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"  {name:<{width}}  {value}")
    for violation in violations[:50]:
        print(f"VIOLATION: {violation}")
    print("FAILED" if violations else "passed", flush=True)
    sys.exit(1 if violations else 0)
