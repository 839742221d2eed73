"""Prints tables in Markdown, and describes the machine."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """Returns cores, processor and versions, in one line."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores of {processor} ({torch.backends.cpu.get_cpu_capability()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


def print_table(rows: list[list[str]]) -> None:
    """Prints rows as a Markdown table; the first row is the header, and short rows are padded."""
    width = len(rows[0])
    full = [row + [""] * (width - len(row)) for row in rows]
    # The text of a short row, such as a reason, may be longer than its column.
    sizes = [max(len(row[i]) for row in rows if len(row) == width) for i in range(width)]
    for number, row in enumerate(full):
        print("| " + " | ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)) + " |")
        if not number:
            print("|" + "|".join("-" * (size + 2) for size in sizes) + "|")
    print(flush=True)
