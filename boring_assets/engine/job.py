"""A shard in progress: which of its rows are answered, and how."""

from concurrent.futures import Future

import numpy as np

from boring_assets.engine.decoding.decode import Preprocess, resize
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.inputs.exclusions import source_columns
from boring_assets.engine.results import EmbeddedShard, Options, ShardRows
from boring_assets.engine.samples import Failure, Shard


class Job:
    """A shard in progress. Only the encoder's thread uses it.

    Attributes:
        shard: The shard.
        end: Its rows, once it was read to its end.
        failures: Why rows failed, by row number.
        embedded: How many rows have an embedding.
        seconds: Its share of the run's time so far.
        image_bytes: Size of its encoded images so far.
        closed: Whether it is finished, or given up.
        checked: Done when the source was checked after reading. Holds an error if it has changed.
    """

    def __init__(self, shard: Shard, expected_rows: int, dim: int, options: Options) -> None:
        """Starts a shard.

        Args:
            shard: The shard.
            expected_rows: How many rows it probably has; it may have more.
            dim: Length of an embedding.
            options: The pipeline's options.
        """
        self.shard, self._options = shard, options
        self.end: ShardRows | None = None
        self.failures: dict[int, Failure] = {}
        self.embedded = 0
        self.seconds = 0.0
        self.image_bytes = 0
        self.closed = False
        self.checked: Future[None] = Future()
        self._previews: list[tuple[int, np.ndarray]] = []
        self._vectors = np.empty((expected_rows, dim), np.float32)
        self._done = np.zeros(expected_rows, bool)

    @property
    def answered(self) -> int:
        """How many rows are answered."""
        return self.embedded + len(self.failures)

    @property
    def complete(self) -> bool:
        """Whether all wanted rows are answered, and no more are to come."""
        if self.end is None:
            return False
        rows, only = self.end.rows.num_rows, self.shard.only_rows
        return self.answered == (rows if only is None else sum(row < rows for row in only))

    def fail(self, row: int, failure: Failure) -> None:
        """Answers a row with a failure."""
        self.failures[row] = failure

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
        self.embedded += len(rows)

    def keep_previews(self, rows: list[int], pixels: Pixels, preprocess: Preprocess) -> None:
        """Copies the first images of the shard for its contact sheet, as the model gets them."""
        wanted = self._options.previews - len(self._previews)
        for number, row in enumerate(rows[: max(0, wanted)]):
            image = resize(pixels.image(number)[None], preprocess)[0]
            self._previews.append((row, image.numpy().copy()))

    def finish(self) -> EmbeddedShard:
        """Returns the finished shard."""
        assert self.end is not None
        if self.end.streamed:
            self._exclude(self.end)
        embedded = np.flatnonzero(self._done)
        return EmbeddedShard(
            shard=self.shard,
            rows=self.end.rows,
            columns=self.end.columns,
            embedded=embedded,
            embeddings=self._vectors if len(embedded) == len(self._vectors) else self._vectors[embedded],
            failures=dict(sorted(self.failures.items())),
            seconds=self.seconds,
            image_bytes=self.image_bytes,
            cut=self.end.cut,
            checked=self.checked,
            previews=[(row, pixels) for row, pixels in self._previews if row not in self.failures],
            notes=self.end.notes,
        )

    def _exclude(self, end: ShardRows) -> None:
        """Makes failures of the excluded rows of a stream, whose columns are known only now."""
        excluded = self._options.exclusions.find_rows(source_columns(end.rows, end.columns))
        for row, failure in excluded.items():
            if self.shard.only_rows is None or row in self.shard.only_rows:
                self.failures[row] = failure
        self._done[[row for row in excluded if row < len(self._done)]] = False
