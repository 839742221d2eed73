"""A shard under way: which of its rows are answered, and how."""

from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from boring_assets.engine.results import EmbeddedShard
from boring_assets.engine.samples import Failure, Shard
from boring_assets.engine.sources import OpenShard

if TYPE_CHECKING:
    from torch import Tensor


class Job:
    """A shard under way. After the reader has made it, only the encoder's thread changes it."""

    def __init__(
        self, shard: Shard, source: OpenShard | None, dim: int, cut: int = 0, previews: int = 0
    ) -> None:
        self.shard, self.source, self.cut = shard, source, cut
        self.previews: list[tuple[int, np.ndarray]] = []
        self._previews = previews
        self.seconds = 0.0
        self.image_bytes = 0
        self.waiting = self.total = source.rows.num_rows if source else 0
        self.vectors = np.empty((self.total, dim), np.float32)
        self.done = np.zeros(self.total, bool)
        self.failures: dict[int, Failure] = {}
        self.closed = False
        self.checked: Future[None] = Future()

    def keep(self, rows: list[int], pixels: "Tensor") -> None:
        """Copies the first images for people to look at, as long as there are too few."""
        wanted = self._previews - len(self.previews)
        if wanted > 0:
            copies = pixels[:wanted].numpy().copy()
            self.previews.extend(zip(rows, copies, strict=False))

    def finish(self) -> EmbeddedShard:
        """The finished shard."""
        assert self.source is not None
        embedded = np.flatnonzero(self.done)
        return EmbeddedShard(
            shard=self.shard,
            rows=self.source.rows,
            columns=self.source.columns,
            embedded=embedded,
            embeddings=self.vectors if len(embedded) == self.total else self.vectors[embedded],
            failures=dict(sorted(self.failures.items())),
            seconds=self.seconds,
            image_bytes=self.image_bytes,
            cut=self.cut,
            checked=self.checked,
            previews=self.previews,
        )
