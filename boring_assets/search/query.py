"""Searches the index by text, picture or key, with filters and pages."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from boring_assets.engine.decoding.decode import decode
from boring_assets.engine.decoding.pixels import Pixels
from boring_assets.engine.samples import Failure
from boring_assets.errors import ModelError, SettingsError, StorageError
from boring_assets.output.identity import choose_model
from boring_assets.search.index import has_vector_index, model_of
from boring_assets.search.lance import index_errors, open_table, quote
from boring_assets.search.pictures import picture_limits
from boring_assets.search.rows import VECTOR
from boring_assets.settings import Settings
from boring_assets.storage.root import Root
from boring_assets.storage.weights import find_model_files

if TYPE_CHECKING:
    from boring_assets.engine.model.encoder import Encoder
    from boring_assets.engine.model.load import ClipModel
    from boring_assets.engine.model.text import TextEncoder

_OWN = ("partition", "row", "key", "url", "caption")
_HIDDEN = ("load", VECTOR)
# Partitions of the index that are searched, and candidates for each result whose exact distance is computed.
_PROBES = 64
_REFINE = 10
_COUNTED = 1_000_000  # rows that `count_values` reads


@dataclass(frozen=True)
class Hit:
    """One result of a search. Its texts come from the data: they are not trusted."""

    key: str | None
    caption: str | None
    score: float  # cosine of its embedding and the query, -1 to 1
    url: str | None
    partition: str
    row: int  # of the partition's input shard, from 0
    meta: dict[str, Any]  # further columns

    def as_json(self) -> dict[str, Any]:
        """Returns all columns in one dictionary."""
        own = {name: getattr(self, name) for name in ("key", "caption", "score", "url", "partition", "row")}
        return {**own, **self.meta}


def to_json(hits: "Sequence[Hit]") -> str:
    """Returns results as a JSON list; NaN and infinity become null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps([{name: plain(value) for name, value in hit.as_json().items()} for hit in hits])


class Searcher:
    """The index of an output and its model, which is loaded by the first search that needs it.

    The model is that of the settings where they set one, else the index names it. Threads may share it. All
    methods that read the index raise a StorageError if it cannot be read.
    """

    def __init__(self, settings: Settings, root: Root) -> None:
        """Opens the index.

        Raises:
            SettingsError: LanceDB is not installed.
            StorageError: There is no index, or it cannot be read.
        """
        self._settings, self._root = settings, root
        self._lock = Lock()
        self._table = open_table(root)
        if self._table is None:
            raise StorageError(
                f"There is no index below {root.uri} yet. Run `boring-assets index` first; it makes none "
                "where no image is embedded, see `boring-assets failures`."
            )

    def refresh(self) -> None:
        """Opens the latest version of the index; without this, searches use the version that was opened."""
        with index_errors(self._root, "read"):
            self._table.checkout_latest()

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that a filter may name."""
        return {column.name: column.type for column in self._table.schema if column.name not in _HIDDEN}

    def count(self) -> int:
        """Returns the number of rows."""
        with index_errors(self._root, "read"):
            return int(self._table.count_rows())

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self._table.schema.field(VECTOR).type.list_size)

    def sample(self, *, limit: int = 10, offset: int = 0, where: str = "") -> list[Hit]:
        """Returns pictures from all over the dataset, in a fixed order, with a score of 0.

        With a condition in LanceDB's SQL, they come in the order of the index.
        """
        with index_errors(self._root, "read"):
            if where:
                asked = self._table.search().where(where).limit(limit).offset(offset)
            else:
                rows = _spread(self._table.count_rows(), offset, limit)
                asked = self._table.take_offsets(rows)
            found = asked.select([*self.columns]).to_arrow()
        return [_hit(row, 0.0) for row in found.to_pylist()]

    def sample_vectors(self, limit: int, where: str = "") -> pa.Table:
        """Returns rows from all over the dataset: `columns` and `VECTOR`, float32 [rows, dim].

        Raises:
            SettingsError: The condition is wrong.
        """
        with self._reading(where):
            asked = self._table.search().select([]).with_row_id(True).limit(self._table.count_rows())
            ids = (asked.where(where) if where else asked).to_arrow()["_rowid"].to_numpy()
            chosen = [int(ids[place]) for place in _spread(len(ids), 0, limit)]
            return self._table.take_row_ids(chosen).select([*self.columns, VECTOR]).to_arrow()

    def count_values(self, column: str, most: int = 20) -> list[tuple[Any, int]]:
        """Returns the most frequent values of a column with their counts, over the first million rows.

        Raises:
            SettingsError: There is no such column.
        """
        if column not in self.columns:
            raise SettingsError(f"There is no column {column!r}. The columns are {', '.join(self.columns)}.")
        with index_errors(self._root, "read"):
            values = self._table.search().select([column]).limit(_COUNTED).to_arrow()[column].drop_null()
        counts = values.value_counts().to_pylist()
        ordered = sorted(counts, key=lambda pair: -pair["counts"])
        return [(pair["values"], pair["counts"]) for pair in ordered[:most]]

    def of_text(self, text: str) -> np.ndarray:
        """Returns the embedding of a text, float32 [dim]."""
        with self._lock:
            return self._texts.encode([text])[0]

    def of_picture(self, data: bytes) -> np.ndarray | Failure:
        """Returns the embedding of an encoded picture, float32 [dim], or why there is none."""
        from boring_assets.engine.model.bad_vectors import bad_vectors

        limits = picture_limits(self._settings)
        with self._lock:
            pixels = decode(data, self._model.preprocess, limits)
            if isinstance(pixels, Failure):
                return pixels
            vectors = self._images.submit([Pixels.of_images(pixels[None])]).result()
            return self._images.bad_vector() if bad_vectors(vectors)[0] else vectors[0]

    def of_key(self, key: str, partition: str | None = None) -> tuple[np.ndarray, Hit]:
        """Returns the embedding of a picture of the index by its key, and the picture.

        Raises:
            SettingsError: There is none, or several and no partition was given.
        """
        where = f"key = {quote(key)}" + (f" AND partition = {quote(partition)}" if partition else "")
        found = self._find(where, f"the key {key!r}")
        if found.num_rows > 1 and partition is None:
            raise SettingsError(
                f"The key {key!r} is in the partitions {' and '.join(found['partition'].to_pylist())}. "
                "Add --partition."
            )
        vector = np.array(found[VECTOR][0].as_py(), np.float32)
        return vector, _hit(found.drop_columns(list(_HIDDEN)).to_pylist()[0], 1.0)

    def of_row(self, partition: str, row: int) -> np.ndarray:
        """Returns the embedding of a picture of the index, float32 [dim].

        Raises:
            SettingsError: There is none.
        """
        where = f"partition = {quote(partition)} AND row = {row}"
        found = self._find(where, f"the partition {partition!r} and the row {row}")
        return np.array(found[VECTOR][0].as_py(), np.float32)

    def _find(self, where: str, what: str) -> pa.Table:
        with index_errors(self._root, "read"):
            found = self._table.search().where(where).limit(2).to_arrow()
        if not found.num_rows:
            raise SettingsError(f"There is no picture with {what} in the index.")
        return found

    def nearest(
        self,
        vector: np.ndarray,
        *,
        limit: int = 10,
        offset: int = 0,
        where: str = "",
        least_score: float = -1.0,
    ) -> list[Hit]:
        """Returns the pictures nearest to a vector, float32 [dim], L2-normalized; the best first.

        `where` is a condition in LanceDB's SQL, e.g. `meta_width >= 512`.

        Raises:
            SettingsError: The condition is wrong.
        """
        ask = self._table.search(vector, vector_column_name=VECTOR).distance_type("cosine")
        if has_vector_index(self._table):
            # If a filter leaves too few candidates, LanceDB searches further parts.
            ask = ask.minimum_nprobes(_PROBES).maximum_nprobes(0).refine_factor(_REFINE)
        if where:
            ask = ask.where(where)
        with self._reading(where):
            found = ask.select([*self.columns, "_distance"]).limit(limit).offset(offset).to_arrow()
        scores = 1 - found["_distance"].to_numpy()
        rows = found.drop_columns(["_distance"]).to_pylist()
        hits = [_hit(row, float(score)) for row, score in zip(rows, scores, strict=True)]
        return [hit for hit in hits if hit.score >= least_score]

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        try:
            with index_errors(self._root, "read"):
                yield
        except StorageError as error:
            if where and isinstance(error.__cause__, ValueError):
                names = ", ".join(self.columns)
                raise SettingsError(
                    f"The filter {where!r} is wrong: {error.__cause__}. The columns are {names}."
                ) from error
            raise

    @cached_property
    def _model(self) -> "ClipModel":
        index_model = model_of(self._table.schema)
        chosen = choose_model(self._settings, index_model)
        name, digest = chosen["model"], chosen["weights_sha256"]
        model = find_model_files(name, chosen["pretrained"], digest).load()
        if model.digest != index_model["weights_digest"]:
            raise ModelError(
                f"The images were embedded with {index_model['model']} {index_model['pretrained']} "
                f"(weights {index_model['weights_digest']}), but {name} has other weights ({model.digest}). "
                "Set BORING_MODEL and BORING_PRETRAINED to the model that they were embedded with."
            )
        return model

    @cached_property
    def _texts(self) -> "TextEncoder":
        from boring_assets.engine.model.text import TextEncoder

        return TextEncoder(self._model, self._settings.device, self._settings.precision)

    @cached_property
    def _images(self) -> "Encoder":
        from boring_assets.engine.model.encoder import Encoder

        precision = self._settings.precision
        # Converting a model to int8 takes longer than a query in fp32.
        precision = "fp32" if precision == "int8" else precision
        return Encoder(self._model, self._settings.device, precision, batch_size=1)


def _spread(count: int, offset: int, limit: int) -> list[int]:
    """Returns row numbers from all over a table: each row once, in steps of the golden ratio."""
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) > 1:
        step += 1
    return [number * step % count for number in range(offset, min(offset + limit, count))]


def _hit(row: dict[str, Any], score: float) -> Hit:
    meta = {name: value for name, value in row.items() if name not in _OWN}
    return Hit(score=score, meta=meta, **{name: row[name] for name in _OWN})
