"""The asset checks: each one is a pure function over the measures of all partitions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import dagster as dg
import numpy as np

from boring_assets.output.measures import Measures

Value = TypeVar("Value")
# Fewer embeddings than this may be equal by chance.
_FEW = 10
# Real images are never this similar; embeddings of a broken model are.
_COLLAPSED_SPREAD = 1e-3


@dataclass(frozen=True)
class Committed:
    """The input of the checks.

    Attributes:
        measures: Of each committed partition, the earliest registered first.
        reported: Partitions that Dagster has a materialization of.
        source_versions: Version of each shard that the input holds now.
        settings: The present settings that decide an embedding's numbers.
        max_failure_rate: Largest share of a partition's downloaded images that may fail.
        max_drift: See `drift`.
    """

    measures: Sequence[Measures]
    reported: frozenset[str] = frozenset()
    source_versions: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    max_failure_rate: float = 0.1
    max_drift: float = 0.5

    def readable(self) -> list[Measures]:
        """The partitions that can be read; `rows_accounted_for` names the others."""
        return [partition for partition in self.measures if not partition.error]

    def sound(self) -> list[Measures]:
        """The readable partitions whose embeddings pass the other checks."""
        wrong = dimension(self).problems | unit_norm(self).problems | collapsed(self).problems
        return [partition for partition in self.readable() if partition.key not in wrong and partition.mean]


@dataclass(frozen=True)
class Found:
    """The result of one check.

    Attributes:
        problems: What is wrong, by partition key.
        numbers: What it measured over all partitions; the UI plots them over time.
    """

    problems: dict[str, str]
    numbers: dict[str, float | int] = field(default_factory=dict)


def rows_accounted_for(committed: Committed) -> Found:
    """Each input row is embedded or failed, in the files and in their metadata; no file is lost."""
    problems = {key: "reported to Dagster, but its file is gone" for key in committed.reported}
    rows = 0
    for partition in committed.measures:
        problems.pop(partition.key, None)
        rows += partition.rows
        if why := partition.error or _unaccounted(partition):
            problems[partition.key] = why
    return Found(problems, {"rows": rows})


def _unaccounted(partition: Measures) -> str:
    if partition.rows != partition.embedded + partition.failed:
        return f"{partition.rows} rows, but {partition.embedded} embedded and {partition.failed} failed"
    if partition.vectors != partition.embedded:
        return f"{partition.embedded} rows were embedded, but the file has {partition.vectors}"
    if partition.failures < 0:
        return "the failures file is gone"
    if partition.failures != partition.failed:
        return f"{partition.failed} rows failed, but the failures file names {partition.failures}"
    return ""


def failure_rate(committed: Committed) -> Found:
    """Of the downloaded images, no more than BORING_MAX_FAILURE_RATE failed."""
    problems: dict[str, str] = {}
    failed = there = 0
    for partition in committed.readable():
        bad_images = partition.failed - partition.not_downloaded
        images = partition.rows - partition.not_downloaded
        failed, there = failed + bad_images, there + images
        if bad_images > committed.max_failure_rate * images:
            problems[partition.key] = f"{bad_images} of {images} images failed"
    return Found(problems, {"failure_rate": failed / max(1, there)})


def unit_norm(committed: Committed) -> Found:
    """Every embedding is finite and of length 1."""
    bad = {
        partition.key: partition.bad_vectors for partition in committed.readable() if partition.bad_vectors
    }
    problems = {key: f"{count} embeddings are not finite or not of length 1" for key, count in bad.items()}
    return Found(problems, {"bad_embeddings": sum(bad.values())})


def dimension(committed: Committed) -> Found:
    """Every embedding has the length that its file claims, and the same one as most partitions have."""
    readable = committed.readable()
    usual = _most_common([partition.dim for partition in readable])
    problems = {
        partition.key: f"vectors have {partition.dim} numbers; its metadata says "
        f"{partition.claimed_dim}, most files have {usual}"
        for partition in readable
        if not partition.dim == partition.claimed_dim == usual
    }
    return Found(problems, {"dim": int(usual or 0)})


def collapsed(committed: Committed) -> Found:
    """A partition's embeddings are not all nearly the same, and not more than half of them are equal."""
    problems = {}
    for partition in committed.readable():
        good = partition.vectors - partition.bad_vectors
        if good < _FEW:
            continue
        if (spread := _spread(partition.mean_vector())) < _COLLAPSED_SPREAD:
            problems[partition.key] = f"{good} embeddings with a spread of {spread:.1e}"
        elif partition.largest_group > partition.vectors / 2:
            problems[partition.key] = f"{partition.largest_group} of {partition.vectors} embeddings are equal"
    return Found(problems)


def drift(committed: Committed) -> Found:
    """The mean of a partition's embeddings is near that of all partitions registered before it.

    The distance of the two means is measured in units of the embeddings' spread. Two random samples of n and
    N rows have a distance of about sqrt(1/n + 1/N). Twice that plus BORING_MAX_DRIFT is allowed.
    """
    problems: dict[str, str] = {}
    largest, rows = 0.0, 0
    total: np.ndarray | None = None
    for partition in committed.sound():
        mean, count = partition.mean_vector(), partition.vectors
        if total is not None:
            before = total / rows
            spread = max(_spread(before), _COLLAPSED_SPREAD)
            moved = float(np.linalg.norm(mean - before)) / spread**0.5
            chance = 2 * (1 / count + 1 / rows) ** 0.5
            largest = max(largest, moved - chance)
            if moved - chance > committed.max_drift:
                problems[partition.key] = (
                    f"its mean is {moved:.2f} spreads from that of the {rows} rows before it"
                )
        total = mean * count if total is None else total + mean * count
        rows += count
    return Found(problems, {"largest_drift": round(largest, 4)})


def duplicates(committed: Committed) -> Found:
    """No partition has one key twice, and no two partitions have the same embeddings."""
    problems: dict[str, str] = {}
    first: dict[str, str] = {}
    for partition in committed.readable():
        if partition.repeated_keys:
            problems[partition.key] = f"{partition.repeated_keys} rows have the key of an earlier row"
        if (
            partition.vectors
            and partition.digest
            and first.setdefault(partition.digest, partition.key) != partition.key
        ):
            problems[partition.key] = f"the same embeddings as {first[partition.digest]}"
    return Found(problems)


def stale(committed: Committed) -> Found:
    """Every partition was embedded from the present shard, with the present settings and weights."""
    problems = {}
    readable = committed.readable()
    weights = _most_common(
        [partition.weights_digest for partition in readable if partition.settings == committed.settings]
    )
    for partition in readable:
        now = committed.source_versions.get(partition.key)
        if now is not None and partition.source_version != now:
            problems[partition.key] = "its shard has changed since"
        elif partition.settings != committed.settings:
            problems[partition.key] = f"embedded with {partition.settings}, now {committed.settings}"
        elif partition.weights_digest != weights:
            problems[partition.key] = (
                f"embedded with the weights {partition.weights_digest}, most with {weights}"
            )
    return Found(problems)


def _spread(mean: np.ndarray) -> float:
    """Returns the mean squared distance of unit vectors to their mean: 1 if scattered, 0 if equal."""
    return max(0.0, 1 - float(mean @ mean))


def _most_common(values: Sequence[Value]) -> Value | None:
    return Counter(values).most_common(1)[0][0] if values else None


_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
CHECKS: dict[str, tuple[dg.AssetCheckSeverity, Callable[[Committed], Found]]] = {
    "rows_accounted_for": (_ERROR, rows_accounted_for),
    "failure_rate": (_WARN, failure_rate),
    "unit_norm": (_ERROR, unit_norm),
    "dimension": (_ERROR, dimension),
    "collapsed": (_ERROR, collapsed),
    "drift": (_WARN, drift),
    "duplicates": (_WARN, duplicates),
    "stale": (_WARN, stale),
}
"""The checks by name: severity and function. The function's docstring is the description in the UI."""
