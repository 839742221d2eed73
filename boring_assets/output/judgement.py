"""What is wrong with an output: each check is a pure function over what its partitions measure."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import dagster as dg
import numpy as np

from boring_assets.output.measures import Measures

Value = TypeVar("Value")
# Below so many embeddings, all of them being equal says nothing.
_FEW = 10
# Most pictures are of one kind long before this; what is left is a model that answers nothing but one vector.
_COLLAPSED_SPREAD = 1e-3


@dataclass(frozen=True)
class Committed:
    """All that the checks look at.

    Attributes:
        measures: Of each committed partition, the earliest registered first.
        reported: Partitions that Dagster has a materialization of.
        source_versions: Version of each shard that the input holds now.
        settings: What decides an embedding's numbers now.
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
        return [one for one in self.measures if not one.error]

    def sound(self) -> list[Measures]:
        """Those among them whose embeddings no other check complains of."""
        wrong = dimension(self).problems | unit_norm(self).problems | collapsed(self).problems
        return [one for one in self.readable() if one.key not in wrong and one.mean]


@dataclass(frozen=True)
class Found:
    """What one check found.

    Attributes:
        problems: What is wrong, by partition key.
        numbers: What it measured over all partitions; the UI plots them over time.
    """

    problems: dict[str, str]
    numbers: dict[str, float | int] = field(default_factory=dict)


def rows_accounted_for(committed: Committed) -> Found:
    """Each input row is embedded or failed, in the files as in their own account; no file is lost."""
    problems = {key: "reported to Dagster, but its file is gone" for key in committed.reported}
    rows = 0
    for one in committed.measures:
        problems.pop(one.key, None)
        rows += one.rows
        if why := one.error or _unaccounted(one):
            problems[one.key] = why
    return Found(problems, {"rows": rows})


def _unaccounted(one: Measures) -> str:
    if one.rows != one.embedded + one.failed:
        return f"{one.rows} rows, but {one.embedded} embedded and {one.failed} failed"
    if one.vectors != one.embedded:
        return f"{one.embedded} rows were embedded, but the file has {one.vectors}"
    if one.failures < 0:
        return "the failures file is gone"
    if one.failures != one.failed:
        return f"{one.failed} rows failed, but the failures file names {one.failures}"
    return ""


def failure_rate(committed: Committed) -> Found:
    """Of the images that there were to embed, no more than BORING_MAX_FAILURE_RATE failed."""
    problems: dict[str, str] = {}
    failed = there = 0
    for one in committed.readable():
        its_failed, its_there = one.failed - one.not_downloaded, one.rows - one.not_downloaded
        failed, there = failed + its_failed, there + its_there
        if its_failed > committed.max_failure_rate * its_there:
            problems[one.key] = f"{its_failed} of {its_there} images failed"
    return Found(problems, {"failure_rate": failed / max(1, there)})


def unit_norm(committed: Committed) -> Found:
    """Every embedding is finite and of length 1."""
    bad = {one.key: one.bad_vectors for one in committed.readable() if one.bad_vectors}
    problems = {key: f"{count} embeddings are not finite or not of length 1" for key, count in bad.items()}
    return Found(problems, {"bad_embeddings": sum(bad.values())})


def dimension(committed: Committed) -> Found:
    """Every embedding has the length that its file claims, and the same one as most partitions have."""
    readable = committed.readable()
    usual = _most_common([one.dim for one in readable])
    problems = {
        one.key: f"length {one.dim}, claimed {one.claimed_dim}, usual {usual}"
        for one in readable
        if not one.dim == one.claimed_dim == usual
    }
    return Found(problems, {"dim": int(usual or 0)})


def collapsed(committed: Committed) -> Found:
    """A partition's images do not all get nearly the same embedding, nor more than half of them one."""
    problems = {}
    for one in committed.readable():
        good = one.vectors - one.bad_vectors
        if good < _FEW:
            continue
        if (spread := _spread(one.mean_vector())) < _COLLAPSED_SPREAD:
            problems[one.key] = f"{good} embeddings with a spread of {spread:.1e}"
        elif one.largest_group > one.vectors / 2:
            problems[one.key] = f"{one.largest_group} of {one.vectors} embeddings are equal"
    return Found(problems)


def drift(committed: Committed) -> Found:
    """The mean of a partition's embeddings is near that of all partitions registered before it.

    The distance of the two means is counted in units of the embeddings' own spread. Chance alone gives two
    samples of n and N rows of one population a distance of about sqrt(1/n + 1/N); twice that is allowed, and
    BORING_MAX_DRIFT on top.
    """
    problems: dict[str, str] = {}
    largest, rows = 0.0, 0
    total: np.ndarray | None = None
    for one in committed.sound():
        mean, count = one.mean_vector(), one.vectors
        if total is not None:
            before = total / rows
            spread = max(_spread(before), _COLLAPSED_SPREAD)
            moved = float(np.linalg.norm(mean - before)) / spread**0.5
            chance = 2 * (1 / count + 1 / rows) ** 0.5
            largest = max(largest, moved - chance)
            if moved - chance > committed.max_drift:
                problems[one.key] = f"its mean is {moved:.2f} spreads from that of the {rows} rows before it"
        total = mean * count if total is None else total + mean * count
        rows += count
    return Found(problems, {"largest_drift": round(largest, 4)})


def duplicates(committed: Committed) -> Found:
    """No partition has one key twice, and no two partitions have the same embeddings."""
    problems: dict[str, str] = {}
    first: dict[str, str] = {}
    for one in committed.readable():
        if one.repeated_keys:
            problems[one.key] = f"{one.repeated_keys} rows have the key of an earlier row"
        if one.vectors and one.digest and first.setdefault(one.digest, one.key) != one.key:
            problems[one.key] = f"the same embeddings as {first[one.digest]}"
    return Found(problems)


def stale(committed: Committed) -> Found:
    """Every partition was made from the shard as it is now, with the settings and weights of now."""
    problems = {}
    readable = committed.readable()
    weights = _most_common([one.weights_digest for one in readable if one.settings == committed.settings])
    for one in readable:
        now = committed.source_versions.get(one.key)
        if now is not None and one.source_version != now:
            problems[one.key] = "its shard has changed since"
        elif one.settings != committed.settings:
            problems[one.key] = f"made with {one.settings}, now {committed.settings}"
        elif one.weights_digest != weights:
            problems[one.key] = f"made with the weights {one.weights_digest}, most with {weights}"
    return Found(problems)


def _spread(mean: np.ndarray) -> float:
    """Mean squared distance of unit vectors to their mean: 1 where they are all over, 0 where equal."""
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
"""The checks by name: how bad it is when one fails, and what finds it. A docstring is its text in the UI."""
