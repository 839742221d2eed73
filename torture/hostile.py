"""Sends many damaged images, parquet files and tars through the engine, on the CPU.

    python -m torture.hostile --images 5000 --files 500

Each part runs in its own process, so that a crash is reported and a hang is ended. The exit code is 1 if a
part crashed, hung, or took more time or memory than allowed, or if a row was not accounted for.
"""

import argparse
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from boring_assets.engine.decoding.limits import Limits

_PART = {"images": 1000, "files": 100}
_PART_SECONDS = 1200


def main() -> int:
    """Runs the parts and prints their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000, help="number of damaged images")
    parser.add_argument("--files", type=int, default=500, help="number of damaged parquet files and tars")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--memory-mb", type=int, default=4096, help="maximum memory of a part, in MiB")
    parser.add_argument("--part", choices=_PART, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(_run_part(arguments.part, getattr(arguments, arguments.part), arguments.seed)))
        return 0
    wrong = []
    for kind in _PART:
        wrong += _run_kind(kind, getattr(arguments, kind), arguments.seed, arguments.memory_mb)
    for problem in wrong:
        print(f"WRONG  {problem}")
    print("FAILED" if wrong else "passed")
    return 1 if wrong else 0


def _run_part(kind: str, count: int, seed: int) -> dict[str, object]:
    from boring_assets.engine.model.encoder import Encoder
    from boring_assets.engine.model.load import load_model
    from boring_assets.tiny import TINY_NAME
    from tests.engine.accounting import account_for_files, account_for_images

    faulthandler.enable()
    encoder = Encoder(load_model(TINY_NAME), device="cpu", precision="fp32", batch_size=64)
    run = account_for_images if kind == "images" else account_for_files
    with tempfile.TemporaryDirectory() as folder:
        account = run(count, seed, Path(folder), encoder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**vars(account), "memory": memory}


def _run_kind(kind: str, count: int, seed: int, memory_mb: int) -> list[str]:
    wrong: list[str] = []
    inputs = embedded = 0
    slowest, memory = (0.0, ""), 0.0
    reasons: Counter[str] = Counter()
    for number, start in enumerate(range(0, count, _PART[kind])):
        size = min(_PART[kind], count - start)
        name = f"{kind}, part {number} (--part {kind} --{kind} {size} --seed {seed + number})"
        options = ["--part", kind, f"--{kind}", str(size), "--seed", str(seed + number)]
        command = [sys.executable, "-m", "torture.hostile", *options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PART_SECONDS)
        except subprocess.TimeoutExpired:
            wrong.append(f"{name} hung: it took more than {_PART_SECONDS} s")
            continue
        if done.returncode:
            wrong.append(f"{name} crashed with {done.returncode}: {done.stderr[-2000:]}")
            continue
        part = json.loads(done.stdout.splitlines()[-1])
        inputs += part["inputs"]
        embedded += part["embedded"]
        reasons.update(part["reasons"])
        slowest = max(slowest, (part["slowest"], part["slowest_kind"]))
        memory = max(memory, part["memory"])
        wrong += [f"{name}: {problem}" for problem in part["wrong"]]
    if slowest[0] > 2 * Limits().seconds:
        wrong.append(f"{slowest[1]} took {slowest[0]:.1f} s; the limit is {Limits().seconds:g} s")
    if memory > memory_mb:
        wrong.append(f"{kind} took {memory:.0f} MiB; the limit is {memory_mb}")
    print(f"{kind:10}{inputs:8}\n  embedded rows {embedded:8}")
    for reason, times in reasons.most_common():
        print(f"  {reason:13} {times:8}")
    if slowest[0]:
        print(f"  slowest       {slowest[0]:8.2f} s ({slowest[1]})")
    print(f"  peak memory   {memory:8.0f} MiB", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
