"""All definitions of one dataset, for a code location of its own or beside others."""

import dagster as dg

from boring_assets.assets.clip_scores import define_clip_scores
from boring_assets.assets.embedding_index import define_embedding_index
from boring_assets.assets.image_embeddings import define_image_embeddings
from boring_assets.assets.near_duplicates import define_near_duplicates
from boring_assets.checks import define_checks
from boring_assets.datasets import Dataset
from boring_assets.engine.results import Progress
from boring_assets.instance.run_logs import log_runs_as_json
from boring_assets.jobs import define_hourly_check, define_jobs
from boring_assets.monitoring.alerts import define_failure_rate_alert
from boring_assets.sensors import define_automation, define_new_shards
from boring_assets.settings import Settings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def build_definitions(
    settings: Settings, progress: Progress | None = None, *, shares_location: bool = False
) -> dg.Definitions:
    """Assets, checks, jobs, sensors and resources of one dataset.

    Args:
        settings: The dataset's settings.
        progress: Counts the samples of all runs of this process, for a progress bar.
        shares_location: Whether they are merged with others. Names of jobs and sensors then begin with the
            dataset's, resource keys with `boring_` and the dataset's, and the executor is the location's.
    """
    if settings.log_format == "json":
        log_runs_as_json()
    dataset = Dataset.from_settings(settings, shares_location=shares_location)
    shards = dg.AssetSpec(
        dataset.source,
        description="The input's shards: parquet files, with the images in them, beside them or behind URLs.",
        partitions_def=dataset.shards,
        metadata={"dagster/uri": settings.input_dir},
    )
    resources = {
        "clip": ClipResource.from_settings(settings),
        "source": ShardSource.from_settings(settings),
        "embeddings": EmbeddingsIOManager.from_settings(settings),
    }
    assets = [
        define_image_embeddings(settings, dataset, progress),
        define_embedding_index(dataset),
        define_near_duplicates(settings, dataset),
        define_clip_scores(settings, dataset),
    ]
    return dg.Definitions(
        assets=[shards, *assets],
        asset_checks=[define_checks(settings, dataset)],
        jobs=define_jobs(dataset),
        schedules=[define_hourly_check(dataset)],
        sensors=[
            define_new_shards(settings, dataset),
            define_failure_rate_alert(settings, dataset),
            define_automation(settings, dataset),
        ],
        resources={dataset.resource_key(name): resource for name, resource in resources.items()},
        executor=None if shares_location else dg.in_process_executor,
    )
