"""The jobs that the sensors, the schedule and the command line run."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.tags import ADOPT_TAG

EMBED_JOB = "embed_shards"
INDEX_JOB = "update_index"
DUPLICATES_JOB = "find_near_duplicates"
SCORES_JOB = "score_captions"
LABELS_JOB = "label_images"


def define_embed_jobs(parts: Sequence[Dataset]) -> list[Any]:
    """The jobs that embed: one, or one for each part of a split dataset."""
    text = "Embeds a range of shards in one process with one loaded model."
    return [_job(part, EMBED_JOB, "image_embeddings", text) for part in parts]


def define_other_jobs(dataset: Dataset, parts: Sequence[Dataset], *, labels: bool = False) -> list[Any]:
    """The jobs for the index, near duplicates, caption scores and labels."""
    heads = "Computes the heads of a range of shards."
    text = "Scores how well a range of shards' captions fit their images."
    return [
        _job(dataset, INDEX_JOB, "embedding_index", "Brings the nearest-neighbour index up to date."),
        _job(dataset, DUPLICATES_JOB, "near_duplicates", "Finds groups of near-identical images."),
        *(_job(part, SCORES_JOB, "clip_scores", text) for part in parts),
        *(_job(part, LABELS_JOB, "image_labels", heads) for part in parts if labels),
    ]


def _job(dataset: Dataset, name: str, asset: str, description: str) -> Any:
    """A job that executes its steps in the run's process, where the model stays loaded."""
    return dg.define_asset_job(
        dataset.local_name(name),
        # Without checks: they read the whole output, and a job runs once for each range of partitions.
        selection=dg.AssetSelection.assets(dataset.asset(asset)).without_checks(),
        description=description,
        executor_def=dg.in_process_executor,
    )


def define_hourly_check(dataset: Dataset, parts: Sequence[Dataset]) -> dg.ScheduleDefinition:
    """The schedule `check_hourly` with its job `check_embeddings`; off by default."""
    job = dg.define_asset_job(
        dataset.local_name("check_embeddings"),
        selection=dg.AssetSelection.checks_for_assets(*(part.embeddings for part in parts)),
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
    """Returns whether a run is executed by the process of `boring-assets embed`, not by a launcher's."""
    return (
        run.job_name.endswith(EMBED_JOB)
        and run.tags.get(ADOPT_TAG) == "true"
        and run.remote_job_origin is None
    )
