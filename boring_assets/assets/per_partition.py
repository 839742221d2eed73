"""Assets that compute something for each embedding: a file beside each embeddings file."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import dagster as dg
import pyarrow as pa

from boring_assets.assets.failures import fail_for_shards, failing_with_reason
from boring_assets.datasets import Dataset, all_committed, backfill_policy
from boring_assets.engine.model.load import ClipModel
from boring_assets.errors import BoringError, ShardError
from boring_assets.output.files import write_table
from boring_assets.output.schema import METADATA_KEY
from boring_assets.settings import Settings
from boring_assets.storage.root import Root
from boring_assets.tags import POOL
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager

Compute = Callable[[str], dict[str, Any]]
"""Computes one partition by its key, and returns the metadata of its event."""


def define_per_partition(
    settings: Settings,
    dataset: Dataset,
    name: str,
    description: str,
    prepare: Callable[[ClipResource, EmbeddingsIOManager], Compute],
) -> dg.AssetsDefinition:
    """Defines an asset over `image_embeddings` that reports each partition as soon as it is computed.

    Args:
        settings: How a backfill is split into runs.
        dataset: The dataset of the embeddings.
        name: Its name.
        description: Its text in the UI.
        prepare: Called once in each run; its result is called for each partition. If that raises a
            ShardError, the partition fails and the run continues with the others.
    """

    @dg.asset(
        key=dataset.asset(name),
        description=description,
        partitions_def=dataset.shards,
        deps=[dataset.embeddings],
        backfill_policy=backfill_policy(settings),
        output_required=False,
        dagster_type=cast(dg.DagsterType, dg.Nothing),
        pool=POOL,
        kinds={"pytorch", "parquet"},
        required_resource_keys=dataset.resource_keys("clip", "embeddings"),
    )
    def per_partition(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        failed: dict[str, BoringError] = {}
        with failing_with_reason(context):
            embeddings.check()
            compute = prepare(dataset.resource(context, "clip"), embeddings)
            for key in context.partition_keys:
                try:
                    metadata = compute(key)
                    yield dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
                except ShardError as error:
                    failed[key] = error
                    context.log.error(f"Shard {key} failed: {error}")
        fail_for_shards(context, failed, len(context.partition_keys))
        yield all_committed()

    return per_partition


def embedded_facts(embeddings: EmbeddingsIOManager, key: str) -> dict[str, Any]:
    """Returns the metadata of a partition's embeddings file.

    Raises:
        ShardError: There is no such file.
    """
    facts = embeddings.facts(key)
    if not facts:
        raise ShardError(f"{embeddings.uri(key)} is not there. Materialize image_embeddings of {key} first.")
    return facts


def check_model(
    embeddings: EmbeddingsIOManager, key: str, facts: Mapping[str, Any], model: ClipModel
) -> None:
    """Checks that a partition was embedded with a model.

    Raises:
        ShardError: It was embedded with another one.
    """
    if facts.get("weights_digest") != model.digest:
        raise ShardError(
            f"{embeddings.uri(key)} was embedded with the weights {facts.get('weights_digest')}, not with "
            f"those of {model.name} ({model.digest}). Set BORING_MODEL and BORING_PRETRAINED to its model."
        )


def write_derived(root: Root, path: str, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes a partition's file; the facts go into its metadata.

    Raises:
        StorageError: It cannot be written.
    """
    table = pa.table(dict(columns))
    write_table(root, path, table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()}))
