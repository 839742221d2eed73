"""The options, the progress and the results of the pipeline."""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from boring_assets.engine.decoding.limits import Limits
from boring_assets.engine.inputs.exclusions import Exclusions
from boring_assets.engine.samples import Failure, Shard
from boring_assets.errors import ShardError


@dataclass(frozen=True)
class Options:
    """Options of the pipeline: how much of the machine it uses.

    Attributes:
        decode_workers: Images decoded at the same time. Above 4, processes read and decode.
        read_ahead_bytes: Maximum size of images, encoded and decoded, that wait for the model.
        limits: Limits for one image and one shard.
        max_rows: Maximum rows over all shards, for trials. None means all.
        previews: Decoded images of a shard to keep for its contact sheet.
        exclusions: Images that must not be embedded.
    """

    decode_workers: int = 2
    read_ahead_bytes: int = 512 * 2**20
    limits: Limits = field(default_factory=Limits)
    max_rows: int | None = None
    previews: int = 0
    exclusions: Exclusions = field(default_factory=Exclusions)


@dataclass(frozen=True)
class ShardRows:
    """The rows of a shard, known when it was read to its end; see `EmbeddedShard` and `OpenShard`."""

    rows: pa.Table
    columns: dict[str, str]
    cut: int
    notes: list[str]
    streamed: bool


@dataclass
class EmbeddedShard:
    """A finished shard: each row, or each of `shard.only_rows`, is either embedded or failed.

    Attributes:
        rows: Every column but the image bytes, in input order.
        columns: Names of its columns for `url`, `key` and `caption`.
        embedded: int64 [n], the row numbers of the embedded samples, ascending.
        embeddings: float32 [n, dim], L2-normalized, one for each of `embedded`.
        failures: Why each other row failed, by row number.
        seconds: Its share of the run's time. Shards that share a batch share its time.
        image_bytes: Size of its encoded images.
        cut: Rows of the shard that `max_rows` left out.
        checked: Done when the source was checked after reading. Holds an error if it has changed.
        previews: Some embedded rows with the pixels that the model got, uint8 [height, width, 3].
        notes: What the run's log should say of how the shard was read.
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
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FailedShard:
    """A shard that could not be read. None of its samples are embedded."""

    shard: Shard
    error: ShardError


@dataclass
class Progress:
    """Counts of a run so far. Any thread may read them.

    Attributes:
        embedded: Embedded samples.
        failed: Failed samples.
        starved_seconds: Time that the model waited for pixels, without its first batch.
        blocked_seconds: Time that the model waited for finished shards to be written.
    """

    embedded: int = 0
    failed: int = 0
    starved_seconds: float = 0.0
    blocked_seconds: float = 0.0
