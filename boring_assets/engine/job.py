"""A shard under way: which of its rows are answered, and how."""

from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from boring_assets.engine.inputs.exclusions import source_columns
from boring_assets.engine.inputs.sources import OpenShard
from boring_assets.engine.results import EmbeddedShard, Options
from boring_assets.engine.samples import Failure, Shard

if TYPE_CHECKING:
    from torch import Tensor


class Job:
    """A shard under way. After the reader has made it, only the encoder's thread changes it."""

    def __init__(
        self, shard: Shard, source: OpenShard | None, dim: int, options: Options | None = None
    ) -> None:
        self.shard, self.source = shard, source
        self.previews: list[tuple[int, np.ndarray]] = []
        self._options = options or Options()
        self.seconds = 0.0
        self.image_bytes = 0
        self.answered = 0
        # What is read as a stream says at its end how many rows it has.
        self.total = None if source and source.streamed else count_wanted(source) if source else 0
        rows = source.rows.num_rows if source else 0
        self._vectors = np.empty((rows, dim), np.float32)
        self._done = np.zeros(rows, bool)
        self.failures: dict[int, Failure] = {}
        self.closed = False
        self.checked: Future[None] = Future()

    @property
    def complete(self) -> bool:
        """Whether each of its wanted rows is answered, and no more are to come."""
        return self.answered == self.total

    def fail(self, row: int, failure: Failure) -> None:
        """Answers a row with a failure."""
        self.failures[row] = failure
        self.answered += 1

    def put(self, rows: list[int], vectors: np.ndarray) -> None:
        """Answers rows with their embeddings.

        Args:
            rows: Their numbers.
            vectors: float32 [n, dim].
        """
        if (needed := max(rows) + 1) > len(self._done):
            more = max(needed, 2 * len(self._done)) - len(self._done)
            self._vectors = np.concatenate([self._vectors, np.empty((more, vectors.shape[1]), np.float32)])
            self._done = np.concatenate([self._done, np.zeros(more, bool)])
        self._vectors[rows] = vectors
        self._done[rows] = True
        self.answered += len(rows)

    def keep(self, rows: list[int], pixels: "Tensor") -> None:
        """Copies the first images for people to look at, as long as there are too few."""
        wanted = self._options.previews - len(self.previews)
        if wanted > 0:
            copies = pixels[:wanted].numpy().copy()
            self.previews.extend(zip(rows, copies, strict=False))

    def finish(self) -> EmbeddedShard:
        """The finished shard."""
        assert self.source is not None
        if self.source.streamed:
            self._exclude(self.source)
        embedded = np.flatnonzero(self._done)
        return EmbeddedShard(
            shard=self.shard,
            rows=self.source.rows,
            columns=self.source.columns,
            embedded=embedded,
            embeddings=self._vectors if len(embedded) == len(self._vectors) else self._vectors[embedded],
            failures=dict(sorted(self.failures.items())),
            seconds=self.seconds,
            image_bytes=self.image_bytes,
            cut=self.source.cut,
            checked=self.checked,
            previews=[(row, pixels) for row, pixels in self.previews if row not in self.failures],
            notes=self.source.notes,
        )

    def _exclude(self, source: OpenShard) -> None:
        """Makes failures of the excluded rows of a stream, whose columns are known only now."""
        excluded = self._options.exclusions.find_rows(source_columns(source.rows, source.columns))
        for row, failure in excluded.items():
            if source.wants(row):
                self.failures[row] = failure
        self._done[[row for row in excluded if row < len(self._done)]] = False


def count_wanted(source: OpenShard) -> int:
    """Returns how many rows of an open shard are wanted, among those known so far."""
    rows, only = source.rows.num_rows, source.shard.only_rows
    return rows if only is None else sum(row < rows for row in only)
