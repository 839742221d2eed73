"""Kills runs of `boring-assets embed` at random moments, and checks the output of their retries.

    python -m torture.crashes --kills 200

A round starts with an empty output and a new Dagster home. Up to three runs are killed, each a retry of the
one before; the next run is not killed. Then the output must be the same as that of an undisturbed run, row
for row, without other files. Every shard must be done in Dagster, and no committed file may have been written
again.
"""

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from boring_assets.shard_states import State
from tests.seaweed import Seaweed
from torture.outputs import EMBEDDINGS, FAILURES, OWN_NOTES, Place, compare, write_input
from torture.report import finish
from torture.starter import Run, Starter

_MOST_KILLS = 3
_DEADLINE = 1800  # seconds until a run that hangs is ended
# One of so many runs decodes in processes, which must end with it.
_WITH_PROCESSES = 8
# One of so many runs is started by its name and with all its imports, as users do.
_COLD = 20


class Crashes:
    """Rounds of killed runs, over one kind of storage."""

    def __init__(self, new_place: Callable[[str], Place], keys: list[str], seed: int) -> None:
        self._new_place, self._keys, self._random = new_place, keys, random.Random(seed)
        self.figures: Counter[str] = Counter()
        self.violations: list[str] = []
        self._starter = Starter()
        for name in ("warm-up", "reference"):  # the second one finds the files in the cache
            reference = new_place(name)
            started = time.monotonic()
            run = reference.start(self._starter)
            _wait_until(lambda: _has_begun(reference, {}), run)  # noqa: B023  (called at once)
            begun = time.monotonic()
            _wait_until(lambda: "metadata.json" in reference.files(), run)  # noqa: B023
            self._startup, self._work = begun - started, time.monotonic() - begun
            if run.wait(_DEADLINE):
                raise RuntimeError(f"The undisturbed run failed:\n{reference.log()}")
        self._tables, self._totals = reference.tables(keys), reference.totals()
        print(
            f"undisturbed run: {self._startup:.1f} s to the first shard, {self._work:.1f} s of work",
            flush=True,
        )

    def run(self, kills: int) -> None:
        """Runs rounds until so many runs were killed."""
        number = 0
        while self.figures["kills"] < kills:
            number += 1
            place = self._new_place(f"round-{number}")
            wrong = self._round(place, kills - self.figures["kills"])
            self.figures["rounds"] += 1
            self.violations += [f"{place.output}: {what}" for what in wrong]
            if not wrong:
                place.remove()
            print(dict(self.figures), f"{len(self.violations)} violations", flush=True)
        self._starter.close()

    def _round(self, place: Place, kills_left: int) -> list[str]:
        wrong: list[str] = []
        killed = 0
        while killed < min(_MOST_KILLS, kills_left):
            before = place.files()
            how = self._kill(place)
            wrong += self._rewritten(before, place.files())
            if how is None:
                break
            killed += 1
            self.figures["kills"] += 1
            self.figures[f"kills: {how}"] += 1
        before = place.files()
        last = place.start(self._starter)
        if last.wait(_DEADLINE):
            return [*wrong, f"the last retry failed: {place.log()}"]
        wrong += self._rewritten(before, place.files())
        wrong += compare(place, self._keys, self._tables, self._totals)
        wrong += [f"{key} is {state}" for key, state in place.states().items() if state is not State.DONE]
        wrong += [f"{key} was embedded {n} times" for key, n in place.computed().items() if n > 1]
        return wrong

    def _kill(self, place: Place) -> str | None:
        """Starts a run and kills it; returns at which stage, or None if the run ended before."""
        before = place.files()
        self.figures["runs"] += 1
        processes = self.figures["runs"] % _WITH_PROCESSES == 0
        cold = self.figures["runs"] % _COLD == 1
        more = {"BORING_DECODE_WORKERS": "5"} if processes else {}
        run = place.start(None if cold else self._starter, **more)
        left = 1 - sum(path.startswith(EMBEDDINGS) for path in before) / len(self._keys)
        aim = self._random.choices(("starting", "working", "committing"), (15, 60, 25))[0]
        if aim == "starting":
            time.sleep(self._random.uniform(0, self._startup))
        elif _wait_until(lambda: _has_begun(place, before), run):
            if aim == "working":
                time.sleep(self._random.uniform(0, self._work * left))
            else:
                seen = self._random.randrange(max(1, round(len(self._keys) * left)))
                _wait_until(lambda: _is_committing(place, before, seen), run)
        if run.poll() is not None:
            if run.returncode:
                self.violations.append(f"a retry failed by itself: {place.log()}")
            return None
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        if not _wait_until(lambda: not _is_group_alive(run.pid), None, 20):
            self.violations.append("processes were still alive after their run was killed")
            os.killpg(run.pid, signal.SIGKILL)
        self.figures["kills: of runs started by name"] += cold
        self.figures["kills: with decoding processes"] += processes
        after = place.files()
        self.figures["kills: with shards committed"] += any(p.startswith(EMBEDDINGS) for p in after)
        if any(path.startswith(".") and not path.startswith(OWN_NOTES) for path in after):
            self.figures["kills: that left a staging file"] += 1
        if _count_half_committed(after) > _count_half_committed(before):
            self.figures["kills: between a shard's two files"] += 1
        return aim if aim == "starting" or _has_begun(place, before) else "starting"

    def _rewritten(self, before: dict[str, str], after: dict[str, str]) -> list[str]:
        """Lists embeddings files that were committed and have been written again."""
        committed = {path: stamp for path, stamp in before.items() if path.startswith(EMBEDDINGS)}
        again = [path for path, stamp in committed.items() if after.get(path) != stamp]
        self.figures["committed shards before a retry"] += len(committed)
        self.figures["committed shards written again"] += len(again)
        return [f"{path} was committed, and written again" for path in again]


def _has_begun(place: Place, before: dict[str, str]) -> bool:
    """Returns whether a run has begun to write shards."""
    return any(path.startswith(FAILURES) for path, _ in place.files().items() - before.items())


def _count_half_committed(files: dict[str, str]) -> int:
    """Counts the partitions with a failures file and no embeddings file."""
    done = {path.removeprefix(EMBEDDINGS) for path in files if path.startswith(EMBEDDINGS)}
    return len({path.removeprefix(FAILURES) for path in files if path.startswith(FAILURES)} - done)


def _is_committing(place: Place, before: dict[str, str], seen: int) -> bool:
    """Returns whether a run is in the middle of a commit, after it has committed `seen` shards."""
    files = place.files()
    return len(files) >= len(before) + 2 * seen and _count_half_committed(files) > 0


def _is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(
    holds: Callable[[], bool], run: "Run | subprocess.Popen[bytes] | None", seconds: float = _DEADLINE
) -> bool:
    """Waits until a condition holds or the run has ended; returns whether it holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (run is None or run.poll() is None):
        if holds():
            return True
        time.sleep(0.002)
    return False


def main() -> None:
    """Kills runs over each kind of storage, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--storage", choices=("local", "s3", "both"), default="both")
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures: dict[str, object] = {}
    violations: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        shards = folder / "input"
        keys = write_input(shards, options.shards, options.images)
        kinds = ("local", "s3") if options.storage == "both" else (options.storage,)
        for kind in kinds:
            if kind == "local":
                new_place = _local(folder, shards)
            else:
                new_place = _on_s3(folder, shards, stack.enter_context(Seaweed(folder / "seaweed")))
            crashes = Crashes(new_place, keys, options.seed)
            crashes.run(options.kills // len(kinds))
            figures |= {f"{kind}: {name}": value for name, value in sorted(crashes.figures.items())}
            violations += crashes.violations
        finish(f"Killed runs (seed {options.seed})", figures, violations)


def _local(folder: Path, shards: Path) -> Callable[[str], Place]:
    def make(name: str) -> Place:
        base = folder / "local" / name
        return Place(base / "home", str(shards), str(base / "out"), LocalFileSystem(), str(base / "out"))

    return make


def _on_s3(folder: Path, shards: Path, server: Seaweed) -> Callable[[str], Place]:
    fs = server.filesystem()
    source = server.new_prefix()
    fs.put(f"{shards}/", source, recursive=True)

    def make(name: str) -> Place:
        target = server.new_prefix()
        path = target.removeprefix("s3://")
        return Place(folder / "s3" / name / "home", source, target, fs, path, server.env)

    return make


if __name__ == "__main__":
    main()
