"""What the pipeline is asked for and what it gives back."""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.samples import Failure, Shard
from boring_assets.errors import ShardError


@dataclass(frozen=True)
class Options:
    """How much of the machine the pipeline takes.

    Attributes:
        decode_workers: How many decode at once; above four they are processes.
        read_ahead_bytes: Most bytes of images, encoded and decoded, waiting for the model.
        limits: The most that one image may cost.
        max_rows: Most rows over all shards, for trying things out; None takes all.
        previews: Most decoded images of a shard that are kept for people to look at.
    """

    decode_workers: int = 2
    read_ahead_bytes: int = 512 * 2**20
    limits: Limits = field(default_factory=Limits)
    max_rows: int | None = None
    previews: int = 0


@dataclass
class EmbeddedShard:
    """A finished shard: `rows.num_rows == len(embedded) + len(failures)`.

    Attributes:
        shard: Which one.
        rows: Every column but the image bytes, in input order.
        columns: Which of its columns is its `url`, `key` and `caption`.
        embedded: int64 [n], the embedded rows in rising order.
        embeddings: float32 [n, dim], L2-normalized, one for each of `embedded`.
        failures: What became of every other row, by row.
        seconds: Its share of the run's time; where shards share a batch, by their part of it.
        image_bytes: Encoded bytes of its images.
        cut: Rows of the shard that `max_rows` left out.
        checked: Ends when its source was looked at after it was read; with an error where it had changed.
        previews: Some embedded rows, and their pixels as the model saw them, uint8 [height, width, 3].
    """

    shard: Shard
    rows: pa.Table
    columns: dict[str, str]
    embedded: np.ndarray
    embeddings: np.ndarray
    failures: dict[int, Failure]
    seconds: float
    image_bytes: int
    cut: int
    checked: Future[None] | None = None
    previews: list[tuple[int, np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class FailedShard:
    """A shard that could not be read; nothing of it is embedded."""

    shard: Shard
    error: ShardError


@dataclass
class Progress:
    """What a run has done so far; any thread may read it.

    Attributes:
        embedded: Samples embedded.
        failed: Samples failed.
        starved_seconds: How long the model waited for pixels, its first batch left out.
        blocked_seconds: How long it waited until finished shards were written, where those were too many.
    """

    embedded: int = 0
    failed: int = 0
    starved_seconds: float = 0.0
    blocked_seconds: float = 0.0
