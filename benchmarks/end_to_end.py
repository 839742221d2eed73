"""Compares this project with other ways to embed the same shards, and with its own ceilings.

    make bench
    python -m benchmarks.end_to_end [--models ...] [--images ...] [--rounds ...]

Each side runs in its own process, and each round runs all sides. `CPU s` is the processor time of a side and
its children, start-up included; it hardly depends on other work of the machine. The weights are random, the
same for all sides. The table shows medians over the rounds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.common import TINY, write_parquet_twin
from benchmarks.environments import python_for
from benchmarks.pictures import write_shards
from benchmarks.side import STARTED
from benchmarks.sides import CEILINGS, SIDES
from benchmarks.table import machine, print_table

_SHARDS = 4
_SIDE_SECONDS = 300


def make_checkpoint(model: str, folder: Path) -> str:
    """Writes a checkpoint with random weights and returns its path; empty for `boring-tiny`."""
    if model == TINY:
        return ""
    import open_clip
    import torch

    torch.manual_seed(0)
    path = folder / "checkpoint.pt"
    torch.save(open_clip.create_model(model, pretrained_text=False).state_dict(), path)
    return str(path)


def run_side(side: str, python: str, model: str, folder: Path, checkpoint: str) -> dict[str, float] | str:
    """Runs one side once with a Python interpreter; returns its numbers, or why there are none."""
    command = [python, "-m", "benchmarks.side", side, model, str(folder), "--checkpoint", checkpoint]
    env = os.environ | {STARTED: repr(time.time()), "DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "true"}
    root = Path(__file__).parent.parent
    before = _children_cpu()
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=_SIDE_SECONDS, cwd=root, env=env
        )
    except subprocess.TimeoutExpired:
        return f"not finished in {_SIDE_SECONDS} s"
    if run.returncode:
        return run.stderr.strip().splitlines()[-1][:100]
    return {**json.loads(run.stdout.splitlines()[-1]), "cpu": _children_cpu() - before}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def bench(model: str, images: int, rounds: int, names: list[str]) -> None:
    """Runs some sides with one model, and prints a table; `images` is for each side and round."""
    pythons = {name: python_for(name) for name in names}
    why = {name: problem for name, (_, problem) in pythons.items() if problem}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary) / "shards"
        size = write_shards(folder, _SHARDS, images // _SHARDS)
        write_parquet_twin(folder)
        checkpoint = make_checkpoint(model, Path(temporary))
        loads = []
        for number in range(rounds):
            for name in names:
                if name in why:
                    continue
                loads.append(os.getloadavg()[0])
                answer = run_side(name, pythons[name][0], model, folder, checkpoint)
                print(f"  round {number + 1}, {name}: {answer}", flush=True)
                if isinstance(answer, str):
                    why[name] = answer
                else:
                    runs[name].append(answer)
    print(
        f"\n{model}: {images} JPEGs of 256 px in {_SHARDS} tars, {size / images / 1024:.0f} KB each, "
        f"{rounds} rounds. Load before each side {min(loads):.1f} to {max(loads):.1f}. {machine()}"
    )
    print_table(_rows(runs, why))


def _rows(runs: dict[str, list[dict[str, float]]], why: dict[str, str]) -> list[list[str]]:
    middle = {
        name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
        if measured and name not in why
    }
    ours = middle.get("engine", {}).get("steady", float("nan"))
    rows = [
        [
            "side",
            "first batch s",
            "whole s",
            "images/s whole",
            "images/s steady",
            "engine / side",
            "CPU s",
            "peak MB",
        ]
    ]
    for name in runs:
        if name in why:
            rows.append([name, f"skipped: {why[name]}"])
            continue
        side = middle[name]
        times = (
            [f"{side['first']:.1f}", f"{side['whole']:.1f}", f"{side['images'] / side['whole']:.1f}"]
            if "first" in side
            else ["", "", ""]
        )
        spread = [run["steady"] for run in runs[name]]
        steady = f"{side['steady']:.1f} ({min(spread):.1f} to {max(spread):.1f})"
        rows.append(
            [
                name,
                *times,
                steady,
                f"{ours / side['steady']:.2f}x",
                f"{side['cpu']:.1f}" if "first" in side else "",
                f"{side['peak_mb']:.0f}" if "peak_mb" in side else "",
            ]
        )
    return rows


def main() -> None:
    """Runs the comparison for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[TINY, "ViT-B-32"])
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        help="images for each side and round; 0 is 2,000 for boring-tiny, else 160",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=[*SIDES, *CEILINGS], choices=[*SIDES, *CEILINGS])
    args = parser.parse_args()
    for model in args.models:
        bench(model, args.images or (2000 if model == TINY else 160), args.rounds, args.sides)


if __name__ == "__main__":
    main()
