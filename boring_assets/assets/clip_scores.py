"""How well each caption fits its image: the cosine of their embeddings, in `clip_scores/{partition}.parquet`.

Columns: `row` (of the input shard), `key`, `clip_score` (null without a caption) and, where
`BORING_CAPTION_EMBEDDINGS` is set, `caption_embedding`. LAION kept pairs that scored at least 0.28
(English) or 0.26 (other languages) with ViT-B-32 (https://laion.ai/blog/laion-5b/).
"""

import json
from collections.abc import Iterator
from typing import Any, cast

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boring_assets.assets.failures import fail_for_shards, failing_with_reason
from boring_assets.datasets import Dataset, all_committed, backfill_policy
from boring_assets.engine.model.load import ClipModel
from boring_assets.engine.model.text import TextEncoder
from boring_assets.errors import BoringError, ShardError
from boring_assets.output.files import committed_facts, write_table
from boring_assets.output.schema import METADATA_KEY, ROW
from boring_assets.settings import Settings
from boring_assets.tags import POOL
from partitions.shards import uri_of
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager

SCORES = "clip_scores"


def define_clip_scores(settings: Settings, dataset: Dataset) -> dg.AssetsDefinition:
    """The asset `clip_scores`."""

    @dg.asset(
        key=dataset.asset(SCORES),
        description=__doc__,
        partitions_def=dataset.shards,
        deps=[dataset.embeddings],
        backfill_policy=backfill_policy(settings),
        output_required=False,
        dagster_type=cast(dg.DagsterType, dg.Nothing),
        pool=POOL,
        kinds={"pytorch", "parquet"},
        required_resource_keys=dataset.resource_keys("clip", "embeddings"),
    )
    def clip_scores(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
        clip: ClipResource = dataset.resource(context, "clip")
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        failed: dict[str, BoringError] = {}
        with failing_with_reason(context):
            embeddings.check()
            model = clip.encoder().model
            texts = TextEncoder(model, clip.device, clip.precision)
            for key in context.partition_keys:
                try:
                    metadata = _score(key, embeddings, model, texts, settings.caption_embeddings)
                    yield dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
                except ShardError as error:
                    failed[key] = error
                    context.log.error(f"Shard {key} failed: {error}")
        fail_for_shards(context, failed, len(context.partition_keys))
        yield all_committed()

    return clip_scores


def _score(
    key: str, embeddings: EmbeddingsIOManager, model: ClipModel, texts: TextEncoder, keep: bool
) -> dict[str, Any]:
    """Scores one shard, unless it was scored in its present version; returns its event's metadata."""
    made = embeddings.facts(key)
    if not made:
        raise ShardError(f"{embeddings.uri(key)} is not there. Materialize image_embeddings of {key} first.")
    if made.get("weights_digest") != model.digest:
        raise ShardError(
            f"{embeddings.uri(key)} was made with the weights {made.get('weights_digest')}, not with those "
            f"of {model.name} ({model.digest}). Set BORING_MODEL and BORING_PRETRAINED to its model."
        )
    root, path = embeddings.root(), f"{SCORES}/{uri_of('', key)}"
    facts: dict[str, Any] = {
        **{
            name: made.get(name)
            for name in ("model", "pretrained", "weights_digest", "precision", "source_version")
        },
        "embedded": made.get("embedded"),
        "caption_embeddings": keep,
    }
    rows = embeddings.scan(key)
    names = ["key", "caption", "embedding"]
    if ROW in rows.collect_schema():
        names.append(ROW)
        facts["rows"] = "input"  # files of earlier versions count the rows of the embeddings file
    there = committed_facts(root, path)
    if {name: there.get(name) for name in facts} != facts:
        table = _table(rows.select(names).collect().to_arrow(), texts, keep)
        scores = table["clip_score"]
        there = {**facts, "scored": len(scores) - scores.null_count, "mean": pc.mean(scores).as_py()}
        write_table(root, path, table.replace_schema_metadata({METADATA_KEY: json.dumps(there).encode()}))
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": there["embedded"],
        "scored": there["scored"],
        "output_uri": dg.MetadataValue.path(f"{root.uri}/{path}"),
    }
    if there["mean"] is not None:
        metadata["mean_clip_score"] = there["mean"]
    return metadata


def _table(rows: pa.Table, texts: TextEncoder, keep: bool) -> pa.Table:
    captions = rows["caption"].to_pylist()
    there = np.array([bool(caption and caption.strip()) for caption in captions], bool)
    images = np.array(rows["embedding"].to_pylist(), np.float32).reshape(len(captions), -1)
    found = np.zeros(images.shape, np.float32)
    if there.any():
        found[there] = texts.encode([caption for caption in captions if caption and caption.strip()])
    columns = {
        ROW: rows[ROW] if ROW in rows.column_names else pa.array(range(len(captions)), pa.int64()),
        "key": rows["key"].cast(pa.string()),
        "clip_score": pa.array((images * found).sum(axis=1), pa.float32(), mask=~there),
    }
    if keep:
        flat = pa.FixedSizeListArray.from_arrays(
            pa.array(found.reshape(-1)), max(1, images.shape[1]), mask=pa.array(~there)
        )
        columns["caption_embedding"] = flat
    return pa.table(columns)
