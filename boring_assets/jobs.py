"""The jobs: what the sensor, the schedule and the command line run."""

from typing import Any

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.tags import ADOPT_TAG

ALIVE_LOCK = ".embed.lock"
"""In `DAGSTER_HOME`: every command line that embeds holds a shared lock on it as long as it lives."""


EMBED_JOB = "embed_shards"
INDEX_JOB = "update_index"
DUPLICATES_JOB = "find_near_duplicates"
SCORES_JOB = "score_captions"
LABELS_JOB = "label_images"


def define_jobs(dataset: Dataset, *, labels: bool = False) -> list[Any]:
    """The jobs of a dataset; each executes its steps in the run's process, where the model stays loaded.

    Args:
        dataset: The dataset.
        labels: Whether it has the asset `image_labels`.
    """

    def job(name: str, asset: str, description: str) -> Any:
        return dg.define_asset_job(
            dataset.local_name(name),
            # Ranges of partitions follow each other fast; the checks look at everything, and not after each.
            selection=dg.AssetSelection.assets(dataset.asset(asset)).without_checks(),
            description=description,
            executor_def=dg.in_process_executor,
        )

    jobs = [
        job(EMBED_JOB, "image_embeddings", "Embeds a range of shards in one process with one loaded model."),
        job(INDEX_JOB, "embedding_index", "Brings the nearest-neighbour index up to date."),
        job(DUPLICATES_JOB, "near_duplicates", "Finds groups of near-identical images."),
        job(
            SCORES_JOB,
            "clip_scores",
            "Scores how well a range of shards' captions fit their images.",
        ),
    ]
    if labels:
        jobs.append(job(LABELS_JOB, "image_labels", "Computes the heads of a range of shards."))
    return jobs


def define_hourly_check(dataset: Dataset) -> dg.ScheduleDefinition:
    """The schedule `check_hourly` with its job `check_embeddings`; off by default."""
    job = dg.define_asset_job(
        dataset.local_name("check_embeddings"),
        selection=dg.AssetSelection.checks_for_assets(dataset.embeddings),
        description="Checks everything that is committed; files that were checked before are not read again.",
        executor_def=dg.in_process_executor,
    )
    return dg.ScheduleDefinition(
        name=dataset.local_name("check_hourly"),
        job=job,
        cron_schedule="@hourly",
        description="Optional: runs the checks of image_embeddings every hour. Backfills run them too.",
    )


def is_of_command_line(run: dg.DagsterRun) -> bool:
    """Whether a run is executed by a command line's own process, and not by one that a launcher started.

    Args:
        run: Any run.

    Returns:
        True for the runs of `boring-assets embed`.
    """
    return run.job_name == EMBED_JOB and run.tags.get(ADOPT_TAG) == "true" and run.remote_job_origin is None
