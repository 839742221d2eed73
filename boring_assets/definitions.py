"""Everything that Dagster is given, and the only place where settings, resources and assets meet."""

import dagster as dg

from boring_assets.assets.clip_scores import define_clip_scores
from boring_assets.assets.embedding_index import define_embedding_index
from boring_assets.assets.image_embeddings import define_image_embeddings
from boring_assets.assets.near_duplicates import define_near_duplicates
from boring_assets.checks import define_checks
from boring_assets.datasets import Dataset
from boring_assets.engine.results import Progress
from boring_assets.instance.run_logs import log_runs_as_json
from boring_assets.jobs import check_hourly, check_job, duplicates_job, embed_job, index_job, scores_job
from boring_assets.monitoring.alerts import define_failure_rate_alert
from boring_assets.monitoring.metrics import Metrics
from boring_assets.sensors import define_automation, define_new_shards
from boring_assets.settings import Settings, load_settings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def build_definitions(settings: Settings, progress: Progress | None = None) -> dg.Definitions:
    """Wires the project.

    Args:
        settings: What the resources are made with.
        progress: Counts the samples of all runs of this process, for a progress bar.

    Returns:
        Assets, checks, jobs, sensor and resources.
    """
    if settings.log_format == "json":
        log_runs_as_json()
    version, dataset = settings.embedding_version(), Dataset(settings.dataset)
    return dg.Definitions(
        assets=[
            define_image_embeddings(
                settings.partitions_per_run, version, dataset, Metrics.from_settings(settings), progress
            ),
            define_embedding_index(dataset),
            define_near_duplicates(settings.duplicate_threshold, dataset),
            define_clip_scores(settings.partitions_per_run, settings.caption_embeddings, dataset),
        ],
        asset_checks=[define_checks(version, settings.max_failure_rate, settings.max_drift, dataset)],
        jobs=[embed_job, check_job, index_job, duplicates_job, scores_job],
        schedules=[check_hourly],
        sensors=[
            define_new_shards(settings.partitions_per_run, settings.sensor_seconds, version, dataset),
            define_failure_rate_alert(
                settings.max_failure_rate,
                settings.alert_minutes,
                settings.alert_webhook.get_secret_value(),
                dataset,
            ),
            define_automation(settings.sensor_seconds),
        ],
        resources={
            "clip": ClipResource.from_settings(settings),
            "source": ShardSource.from_settings(settings),
            "embeddings": EmbeddingsIOManager.from_settings(settings),
        },
        executor=dg.in_process_executor,
    )


defs = build_definitions(load_settings())
