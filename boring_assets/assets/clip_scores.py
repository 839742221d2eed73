"""How well each caption fits its image: the cosine of their embeddings, in `clip_scores/{partition}.parquet`.

Columns: `row` (of the input shard), `key`, `clip_score` (null without a caption) and, where
`BORING_CAPTION_EMBEDDINGS` is set, `caption_embedding`. LAION kept pairs that scored at least 0.28
(English) or 0.26 (other languages) with ViT-B-32 (https://laion.ai/blog/laion-5b/).
"""

from functools import partial
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boring_assets.assets.per_partition import (
    Compute,
    check_model,
    define_per_partition,
    embedded_facts,
    write_derived,
)
from boring_assets.datasets import Dataset
from boring_assets.engine.model.text import TextEncoder
from boring_assets.output.derived import belongs_to, source_facts
from boring_assets.output.files import committed_facts
from boring_assets.output.merging import CommittedRows, read_committed, vectors_of
from boring_assets.output.schema import ROW
from boring_assets.settings import Settings
from partitions.own_files import SCORES
from partitions.shards import uri_of
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager


def define_clip_scores(settings: Settings, dataset: Dataset) -> dg.AssetsDefinition:
    """The asset `clip_scores`."""

    def prepare(clip: ClipResource, embeddings: EmbeddingsIOManager) -> Compute:
        texts = TextEncoder(clip.encoder().model, clip.device, clip.precision)
        return partial(_score, embeddings=embeddings, texts=texts, keep=settings.caption_embeddings)

    return define_per_partition(settings, dataset, SCORES, __doc__ or "", prepare)


def _score(key: str, embeddings: EmbeddingsIOManager, texts: TextEncoder, keep: bool) -> dict[str, Any]:
    """Scores one shard, unless its present version is scored; returns the metadata of its event."""
    embedded = embedded_facts(embeddings, key)
    check_model(embeddings, key, embedded, texts.model)
    root, path = embeddings.root(), f"{SCORES}/{uri_of('', key)}"
    present = committed_facts(root, path)
    if not belongs_to(present, embedded) or present.get("caption_embeddings") != keep:
        committed = read_committed(root, key, ["key", "caption", "embedding"])
        columns = _columns(committed, texts, keep)
        scores = columns["clip_score"]
        present = {
            **source_facts(committed.facts),
            "caption_embeddings": keep,
            "scored": len(scores) - scores.null_count,
            "mean": pc.mean(scores).as_py(),
        }
        write_derived(root, path, columns, present)
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": present["embedded"],
        "scored": present["scored"],
        "output_uri": dg.MetadataValue.path(f"{root.uri}/{path}"),
    }
    if present["mean"] is not None:
        metadata["mean_clip_score"] = present["mean"]
    return metadata


def _columns(committed: CommittedRows, texts: TextEncoder, keep: bool) -> dict[str, pa.Array]:
    captions = committed.table["caption"].to_pylist()
    has_caption = np.array([bool(caption and caption.strip()) for caption in captions], bool)
    images = vectors_of(committed.table)
    found = np.zeros(images.shape, np.float32)
    if has_caption.any():
        found[has_caption] = texts.encode([caption for caption in captions if caption and caption.strip()])
    columns = {
        ROW: pa.array(committed.rows, pa.int64()),
        "key": committed.table["key"].cast(pa.string()).combine_chunks(),
        "clip_score": pa.array((images * found).sum(axis=1), pa.float32(), mask=~has_caption),
    }
    if keep:
        columns["caption_embedding"] = pa.FixedSizeListArray.from_arrays(
            pa.array(found.reshape(-1)), max(1, images.shape[1]), mask=pa.array(~has_caption)
        )
    return columns
