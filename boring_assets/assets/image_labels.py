"""Labels and scores of each image, computed from its embedding by heads: `image_labels/{partition}.parquet`.

The heads are named in the settings (`heads`): a list of labels to choose from, or a linear layer or small MLP
from a safetensors file. No image is decoded. Columns: `row` (of the input shard), `key`, and for each head a
number, or a label with its probability in `{head}_score`. If one head changes, only that one is computed
again.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from boring_assets.assets.per_partition import (
    Compute,
    check_model,
    define_per_partition,
    embedded_facts,
    write_derived,
)
from boring_assets.datasets import Dataset
from boring_assets.engine.model.heads import Head, read_head, read_metadata, zero_shot
from boring_assets.engine.model.text import TextEncoder
from boring_assets.errors import SettingsError
from boring_assets.head_settings import HeadSettings
from boring_assets.output.derived import belongs_to, source_facts
from boring_assets.output.files import committed_facts
from boring_assets.output.merging import CommittedRows, read_committed, vectors_of
from boring_assets.output.schema import ROW
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_errors
from boring_assets.storage.root import Root, open_root
from boring_assets.wording import first_of
from partitions.own_files import LABELS
from partitions.shards import uri_of
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager

Columns = dict[str, pa.Array]
_SHOWN = 10


def define_image_labels(settings: Settings, dataset: Dataset) -> dg.AssetsDefinition:
    """The asset `image_labels`, for settings with heads."""

    def prepare(clip: ClipResource, embeddings: EmbeddingsIOManager) -> Compute:
        return Labeller(settings.heads, clip, embeddings).label

    return define_per_partition(settings, dataset, LABELS, __doc__ or "", prepare)


class Labeller:
    """The heads of one run. The model is loaded only when a zero-shot head is computed."""

    def __init__(
        self, heads: Mapping[str, HeadSettings], clip: ClipResource, embeddings: EmbeddingsIOManager
    ) -> None:
        """Reads the heads' files.

        Raises:
            SettingsError: A file holds no such head.
            StorageError: A file cannot be read.
        """
        self._settings, self._clip, self._embeddings = heads, clip, embeddings
        files = {name: _read(head.weights) for name, head in heads.items() if head.weights}
        self._heads = {
            name: read_head(data, heads[name].weights, heads[name].labels, heads[name].activation)
            for name, data in files.items()
        }
        self._named = {name: _named_model(data, heads[name]) for name, data in files.items()}
        self._digests = {name: _digest(head, files.get(name, b"")) for name, head in heads.items()}

    def label(self, key: str) -> dict[str, Any]:
        """Computes the heads of a partition that are not there yet; returns the metadata of its event.

        Raises:
            ShardError: The partition is not committed, or another model made it.
            SettingsError: A head does not fit the embeddings.
            StorageError: A file cannot be read or written.
        """
        embedded = embedded_facts(self._embeddings, key)
        root, path = self._embeddings.root(), f"{LABELS}/{uri_of('', key)}"
        present = committed_facts(root, path)
        done = present.get("heads", {}) if belongs_to(present, embedded) else {}
        missing = [name for name, digest in self._digests.items() if done.get(name) != digest]
        if missing or done.keys() != self._digests.keys():
            present = self._write(root, key, path, present, missing)
        return {
            "dagster/partition_row_count": present["embedded"],
            **_summary(present["summary"]),
            "computed": first_of(missing, len(missing)) or "nothing: it was up to date",
            "output_uri": dg.MetadataValue.path(f"{root.uri}/{path}"),
        }

    def _write(
        self, root: Root, key: str, path: str, present: Mapping[str, Any], missing: list[str]
    ) -> dict[str, Any]:
        """Writes the partition's file: computes the heads that are missing, and keeps the other columns."""
        committed = read_committed(root, key, ["key", "embedding"] if missing else ["key"])
        if len(missing) < len(self._digests) and not belongs_to(present, committed.facts):
            return self._write(root, key, path, {}, list(self._digests))  # it was embedded again just now
        kept = [name for name in self._digests if name not in missing]
        columns: Columns = {
            ROW: pa.array(committed.rows, pa.int64()),
            "key": committed.table["key"].cast(pa.string()).combine_chunks(),
        }
        old = _read_table(root, path) if kept else None
        vectors = vectors_of(committed.table) if missing else np.empty((0, 0), np.float32)
        summary: dict[str, Any] = {}
        for name in self._digests:
            if old is not None and name in kept:
                columns |= {
                    column: old[column] for column in (name, f"{name}_score") if column in old.column_names
                }
                summary[name] = present["summary"][name]
            else:
                computed = self._compute(key, name, vectors, committed)
                columns |= computed
                summary[name] = _summarize(computed[name])
        facts = {**source_facts(committed.facts), "heads": self._digests, "summary": summary}
        write_derived(root, path, columns, facts)
        return facts

    def _compute(self, key: str, name: str, vectors: np.ndarray, committed: CommittedRows) -> Columns:
        settings = self._settings[name]
        if settings.weights:
            head = self._heads[name]
            _check_fits(name, head, self._named[name], committed.facts)
        else:
            check_model(self._embeddings, key, committed.facts, self._texts.model)
            if name not in self._heads:
                self._heads[name] = zero_shot(self._texts, settings.labels, settings.templates)
            head = self._heads[name]
        if not head.labels:
            return {name: pa.array(head.outputs(vectors)[:, 0], pa.float32())}
        best, score = head.choose(vectors)
        labels = pa.array(head.labels, pa.string()).take(pa.array(best, pa.int64()))
        return {name: labels, f"{name}_score": pa.array(score, pa.float32())}

    @cached_property
    def _texts(self) -> TextEncoder:
        return TextEncoder(self._clip.encoder().model, self._clip.device, self._clip.precision)


def _read(uri: str) -> bytes:
    root = open_root(uri)
    with storage_errors(root.uri, "read"):
        return bytes(root.fs.cat_file(root.path))


def _read_table(root: Root, path: str) -> pa.Table:
    with root.open(path) as file:
        return pq.read_table(file)


def _digest(head: HeadSettings, data: bytes) -> str:
    """Returns a digest of what a head's values depend on, besides the embeddings."""
    chosen = [head.labels, head.activation] if head.weights else [head.labels, head.templates]
    return hashlib.sha256(json.dumps(chosen).encode() + data).hexdigest()[:16]


def _named_model(data: bytes, settings: HeadSettings) -> dict[str, str]:
    """Returns the model that the settings, or else the file's metadata, name for the head."""
    in_file = read_metadata(data)
    names = ("model", "pretrained", "weights_digest")
    own = {name: getattr(settings, name, "") or in_file.get(name, "") for name in names}
    return {name: value for name, value in own.items() if value}


def _check_fits(name: str, head: Head, named: Mapping[str, str], embedded: Mapping[str, Any]) -> None:
    model = " ".join(filter(None, (embedded.get("model"), embedded.get("pretrained"))))
    if head.dim != embedded.get("dim"):
        raise SettingsError(
            f"The head {name} takes embeddings of {head.dim} numbers, but those of {model} have "
            f"{embedded.get('dim')}. Use a head that was trained for this model."
        )
    for fact, value in named.items():
        if value.replace("/", "-") != str(embedded.get(fact)).replace("/", "-"):
            raise SettingsError(
                f"The head {name} is for the {fact} {value}, but the images were embedded with {model} "
                f"({fact} {embedded.get(fact)}). Use a head that was trained for this model."
            )


def _summarize(column: pa.Array) -> Any:
    """Returns the mean of numbers, or how often each label was chosen, most frequent first."""
    if pa.types.is_floating(column.type):
        return pc.mean(column).as_py()
    counts = {pair["values"]: pair["counts"] for pair in column.value_counts().to_pylist()}
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def _summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a partition's summary as metadata: means of numbers, and a line for labels."""
    shown: dict[str, Any] = {}
    for name, value in summary.items():
        if isinstance(value, dict):
            shown[name] = ", ".join(f"{label} {count:,}" for label, count in list(value.items())[:_SHOWN])
        elif value is not None:
            shown[f"mean_{name}"] = value
    return shown
