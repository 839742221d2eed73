"""Prints tables in Markdown, and says what machine it is."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """Cores, processor, and the versions that matter."""
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
    """Prints rows, the first one as the head; short rows are filled up."""
    width = len(rows[0])
    full = [row + [""] * (width - len(row)) for row in rows]
    # A long remark in a short row may stick out.
    sizes = [max(len(row[i]) for row in rows if len(row) == width) for i in range(width)]
    for number, row in enumerate(full):
        print("| " + " | ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)) + " |")
        if not number:
            print("|" + "|".join("-" * (size + 2) for size in sizes) + "|")
    print(flush=True)
