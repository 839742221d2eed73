"""Groups of near-identical images: rows of the index whose embeddings are closer than a threshold.

Groups are connected components: two images of one group may be less similar than the threshold if others
connect them. Below `INDEXED_FROM` rows every pair is compared; above, the index finds nearly all neighbours
of each row.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from boring_assets.search.index import has_vector_index
from boring_assets.search.rows import VECTOR

FILE = "near_duplicates.parquet"
"""Name of the file in the output, written by the asset `near_duplicates`."""
_SHA256 = "meta_sha256"
SCHEMA = pa.schema(
    {
        "group": pa.int64(),
        "partition": pa.string(),
        "row": pa.int64(),
        **dict.fromkeys(("key", "url", "caption"), pa.string()),
        "score": pa.float32(),
        "kind": pa.string(),
    }
)
# Embeddings of equal pixels differ only by rounding; from this cosine on, the images are compared.
_SAME = 0.9995
_BLOCK = 2048
_QUERIES = 64
_NEIGHBOURS = 16
_MOST_NEIGHBOURS = 1024
_MERGED = 1_000_000

Pair = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Two rows and their cosine, for many pairs at once."""
Pairs = Iterator[Pair]
Digest = Callable[[str, str | None, int], str | None]


def find_duplicates(table: Any, threshold: float, digest: Digest | None) -> pa.Table:
    """Returns the groups.

    Args:
        table: The index's; its vectors are held in memory, 4 bytes a number.
        threshold: Least cosine of near duplicates.
        digest: Returns a digest of an image's pixels, by partition, key and row, or None if it is gone.
            Called only for images with almost equal embeddings; None skips the comparison.

    Returns:
        `SCHEMA`, one row an image that is in a group: `score` is its highest cosine with another of the
        group, `kind` is `exact` where another has the same bytes (by `sha256`) or pixels, else `near`.
    """
    names = ["partition", "row", "key", "url", "caption"]
    names += [_SHA256] if _SHA256 in table.schema.names else []
    rows = (
        table.search()
        .select([*names, VECTOR])
        .to_arrow()
        .sort_by([("partition", "ascending"), ("row", "ascending")])
    )
    vectors = rows[VECTOR].combine_chunks()
    matrix = vectors.values.to_numpy(zero_copy_only=False).reshape(len(vectors), vectors.type.list_size)
    pairs = _by_index(table, matrix, rows, threshold) if has_vector_index(table) else _all(matrix, threshold)
    groups = _Groups(len(matrix))
    best = np.full(len(matrix), -1, np.float32)
    for left, right, scores in _merge_batches(pairs):
        np.maximum.at(best, left, scores)
        np.maximum.at(best, right, scores)
        groups.join(left, right)
    return _table(rows.drop_columns([VECTOR]), groups.members(), best, digest)


def _merge_batches(pairs: Pairs) -> Pairs:
    """Yields the same pairs in fewer, larger arrays."""
    waiting: list[Pair] = []
    count = 0
    for piece in pairs:
        waiting.append(piece)
        count += len(piece[0])
        if count >= _MERGED:
            yield _joined(waiting)
            waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[Pair]) -> Pair:
    left, right, scores = zip(*pieces, strict=True)
    return np.concatenate(left), np.concatenate(right), np.concatenate(scores)


def _all(matrix: np.ndarray, threshold: float) -> Pairs:
    """Yields every similar pair, by comparing all rows block by block."""
    for start in range(0, len(matrix), _BLOCK):
        for other in range(start, len(matrix), _BLOCK):
            scores = matrix[start : start + _BLOCK] @ matrix[other : other + _BLOCK].T
            left, right = np.nonzero(scores >= threshold)
            apart = left + start < right + other
            left, right = left[apart], right[apart]
            yield left + start, right + other, scores[left, right]


def _by_index(table: Any, matrix: np.ndarray, rows: pa.Table, threshold: float) -> Pairs:
    """Yields pairs of rows that the index finds near each other; equal vectors are searched once."""
    place = {
        (partition, row): number
        for number, (partition, row) in enumerate(
            zip(rows["partition"].to_pylist(), rows["row"].to_pylist(), strict=True)
        )
    }
    seen: dict[bytes, int] = {}
    asked = []
    for number, vector in enumerate(matrix):
        first = seen.setdefault(hashlib.blake2b(vector, digest_size=16).digest(), number)
        if first == number:
            asked.append(number)
        else:
            yield np.array([first]), np.array([number]), np.ones(1, np.float32)
    limit = _NEIGHBOURS
    while asked and limit <= _MOST_NEIGHBOURS:
        crowded: list[int] = []
        for start in range(0, len(asked), _QUERIES):
            part = np.array(asked[start : start + _QUERIES])
            found = _neighbours(table, matrix[part], limit, threshold)
            left = part[found["query_index"].to_numpy()]
            pairs = zip(found["partition"].to_pylist(), found["row"].to_pylist(), strict=True)
            right = np.array([place[pair] for pair in pairs], np.int64)
            crowded += part[
                np.bincount(found["query_index"].to_numpy(), minlength=len(part)) == limit
            ].tolist()
            apart = left != right
            yield left[apart], right[apart], 1 - found["_distance"].to_numpy()[apart]
        # Rows with more neighbours than the limit are searched again with a higher one. The nearest thousand
        # connect a row to its group; all pairs of a group of many thousands would be too many.
        asked, limit = crowded, limit * 8


def _neighbours(table: Any, queries: np.ndarray, limit: int, threshold: float) -> pa.Table:
    ask = table.search(queries, vector_column_name=VECTOR).distance_type("cosine").nprobes(8).refine_factor(4)
    found: pa.Table = ask.select(["partition", "row", "_distance"]).limit(limit).to_arrow()
    return found.filter(pa.array(1 - found["_distance"].to_numpy() >= threshold))


class _Groups:
    """Connected components of rows (union-find): a row's label is the lowest row of its component."""

    def __init__(self, count: int) -> None:
        self._label = np.arange(count)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Joins the components of each pair of rows: higher labels are set to lower ones until all agree."""
        while True:
            one, other = self._label[left], self._label[right]
            apart = one != other
            if not apart.any():
                return
            left, right, one, other = left[apart], right[apart], one[apart], other[apart]
            np.minimum.at(self._label, np.maximum(one, other), np.minimum(one, other))
            while (self._label[self._label] != self._label).any():
                self._label = self._label[self._label]

    def members(self) -> list[list[int]]:
        """Returns each group of two or more rows, ordered by their first members."""
        order = np.argsort(self._label, kind="stable")
        cuts = np.flatnonzero(np.diff(self._label[order])) + 1
        return [rows.tolist() for rows in np.split(order, cuts) if len(rows) > 1]


def _table(rows: pa.Table, groups: list[list[int]], best: np.ndarray, digest: Digest | None) -> pa.Table:
    import polars as pl

    members = [row for group in groups for row in group]
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    found = pl.DataFrame(rows.take(pa.array(members, pa.int64())))
    found = found.with_columns(group=numbers, score=best[members])
    if _SHA256 not in found.columns:
        found = found.with_columns(pl.lit(None, pl.String).alias(_SHA256))
    places = found.select("partition", "key", "row", "score").iter_rows()
    pixels = [digest(*place) if digest and score >= _SAME else None for *place, score in places]
    found = found.with_columns(pl.Series("pixels", pixels, pl.String))
    # Whether another of the group has the same bytes or pixels.
    is_copy = pl.any_horizontal(
        (pl.col(name).cast(pl.String).str.len_bytes() > 0) & (pl.len().over("group", name) > 1)
        for name in (_SHA256, "pixels")
    )
    kind = pl.when(is_copy.fill_null(False)).then(pl.lit("exact")).otherwise(pl.lit("near"))
    return found.with_columns(kind=kind).select(SCHEMA.names).to_arrow().cast(SCHEMA)
