"""CLIP embeddings of the input's image shards, one partition a shard.

A run embeds any number of partitions with one loaded model, and commits each as soon as it is finished:
`image_embeddings/{partition}.parquet` with `url`, `key`, `caption`, `embedding` and `meta_*` columns, and
beside it `image_failures/{partition}.parquet` with every row that could not be embedded and its reason. For
each shard, rows in = embedded + failed.
"""

import warnings
from collections.abc import Iterator, Sequence

import dagster as dg

from boring_assets.assets.embedding_run import EmbeddingRun
from boring_assets.assets.failures import fail_for_shards, failing_with_reason
from boring_assets.checks import evaluate_after_retry
from boring_assets.datasets import Dataset, all_committed, backfill_policy
from boring_assets.engine.pipeline import Progress
from boring_assets.live_runs import mark_alive
from boring_assets.monitoring.metrics import Metrics
from boring_assets.settings import Settings
from boring_assets.tags import POOL
from resources.embeddings_io import EmbeddingsIOManager

# Backfill policies have been in beta for two years; a user of this project cannot act on the warning.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)


def define_image_embeddings(
    settings: Settings, dataset: Dataset, parts: Sequence[Dataset], progress: Progress
) -> dg.AssetsDefinition:
    """The asset `image_embeddings`, of a dataset or of a part of it.

    Args:
        settings: The dataset's settings; `embedding_version` becomes the asset's code version, so the UI
            shows partitions that other settings made as stale.
        dataset: The names of the dataset, or of the part.
        parts: All parts of the dataset, or itself.
        progress: Counts the samples of all runs of this process, for a progress bar.
    """
    code_version, metrics = settings.embedding_version(), Metrics.from_settings(settings)

    @dg.asset(
        key=dataset.embeddings,
        description=__doc__,
        partitions_def=dataset.shards,
        deps=[dataset.source],
        backfill_policy=backfill_policy(settings),
        io_manager_key=dataset.resource_key("embeddings"),
        required_resource_keys=dataset.resource_keys("source", "clip", "embeddings"),
        output_required=False,
        pool=POOL,
        code_version=code_version,
        kinds={"pytorch", "parquet"},
    )
    def image_embeddings(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetMaterialization | dg.AssetObservation | dg.Output[None]]:
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        with failing_with_reason(context), mark_alive(context.instance, context.run.run_id):
            output, home = embeddings.root().uri, context.instance.root_directory
            with metrics.run(output, home, progress, context.log.warning) as counts:
                run = EmbeddingRun(context, dataset, parts, code_version, counts, progress)
                try:
                    yield from run.materialize()
                finally:
                    evaluate_after_retry(context, settings, dataset)
                fail_for_shards(context, run.failed, len(context.partition_keys))
            yield all_committed()

    return image_embeddings
