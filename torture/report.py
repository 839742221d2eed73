"""How a torture ends: a table of figures, what was violated, and an exit code that says whether it was."""

import sys
from collections.abc import Mapping


def finish(title: str, figures: Mapping[str, object], violations: list[str]) -> None:
    """Prints what was seen and ends the process.

    Args:
        title: What was tried.
        figures: What was counted or measured, by name.
        violations: What must not happen and did; the exit code is 1 where there is any.
    """
    print(f"\n{title}")
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"  {name:<{width}}  {value}")
    for violation in violations[:50]:
        print(f"VIOLATION: {violation}")
    print("FAILED" if violations else "passed", flush=True)
    sys.exit(1 if violations else 0)
