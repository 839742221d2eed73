"""Everything that Dagster is given, and the only place where settings, resources and assets meet."""

import dagster as dg

from boring_assets.assets.clip_scores import define_clip_scores
from boring_assets.assets.embedding_index import define_embedding_index
from boring_assets.assets.image_embeddings import define_image_embeddings
from boring_assets.assets.near_duplicates import define_near_duplicates
from boring_assets.checks import define_checks
from boring_assets.datasets import Dataset
from boring_assets.jobs import check_hourly, check_job, duplicates_job, embed_job, index_job, scores_job
from boring_assets.monitoring.alerts import define_failure_rate_alert
from boring_assets.monitoring.logs import log_runs_as_json
from boring_assets.monitoring.metrics import Metrics
from boring_assets.sensors import define_automation, define_new_shards
from boring_assets.settings import Settings, load_settings
from resources.clip import ClipResource
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def build_definitions(settings: Settings) -> dg.Definitions:
    """Wires the project.

    Args:
        settings: What the resources are made with.

    Returns:
        Assets, checks, jobs, sensor and resources.
    """
    if settings.log_format == "json":
        log_runs_as_json()
    version, dataset = settings.embedding_version(), Dataset(settings.dataset)
    return dg.Definitions(
        assets=[
            define_image_embeddings(settings.partitions_per_run, version, dataset, build_metrics(settings)),
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
            "clip": build_clip(settings),
            "source": build_source(settings),
            "embeddings": build_embeddings(settings),
        },
        executor=dg.in_process_executor,
    )


def build_clip(settings: Settings) -> ClipResource:
    """The model."""
    return ClipResource(
        model=settings.model,
        pretrained=settings.pretrained,
        device=settings.device,
        precision=settings.precision,
        batch_size=str(settings.batch_size),
        decode_workers=settings.decode_workers,
        read_ahead_mb=settings.read_ahead_mb,
        max_image_pixels=settings.max_image_pixels,
        max_image_bytes=settings.max_image_bytes,
        max_image_seconds=settings.max_image_seconds,
        extra_image_formats=list(settings.extra_image_formats),
        max_shard_rows=settings.max_shard_rows,
        max_shard_mb=settings.max_shard_mb,
        preview_images=settings.preview_images,
    )


def build_source(settings: Settings) -> ShardSource:
    """The input."""
    return ShardSource(
        input_dir=settings.input_dir,
        quiet_seconds=settings.quiet_seconds,
        allowed_url_prefixes=list(settings.allowed_url_prefixes),
        max_image_bytes=settings.max_image_bytes,
        fetch_timeout_seconds=settings.fetch_timeout_seconds,
    )


def build_embeddings(settings: Settings) -> EmbeddingsIOManager:
    """The output."""
    return EmbeddingsIOManager(output_dir=settings.output_dir, output_dtype=settings.output_dtype)


def build_metrics(settings: Settings) -> Metrics:
    """Where metrics of runs go; no resource, since Dagster stores and shows what those are made with."""
    return Metrics(settings.metrics_dir, settings.metrics_pushgateway.get_secret_value())


defs = build_definitions(load_settings())
