"""The job that backfills, the sensor and the command line run, and the one that checks the output."""

import dagster as dg

from boring_assets.tags import ADOPT_TAG

ALIVE_LOCK = ".embed.lock"
"""In `DAGSTER_HOME`: every command line that embeds holds a shared lock on it as long as it lives."""


def _only(name: str) -> dg.AssetSelection:
    """The code location's one asset of a name, whichever dataset's it is."""
    return dg.AssetSelection.from_string(f'key:"{name}" or key:"*/{name}"')


embed_job = dg.define_asset_job(
    "embed_shards",
    # Ranges of partitions follow each other fast; the checks look at everything, and not after each.
    selection=_only("image_embeddings").without_checks(),
    description="Embeds a range of shards in one process with one loaded model.",
    executor_def=dg.in_process_executor,
)

check_job = dg.define_asset_job(
    "check_embeddings",
    selection=dg.AssetSelection.all_asset_checks(),
    description="Checks everything that is committed; files that were checked before are not read again.",
    executor_def=dg.in_process_executor,
)
check_hourly = dg.ScheduleDefinition(
    name="check_hourly",
    job=check_job,
    cron_schedule="@hourly",
    description="Runs the checks every hour; off until somebody turns it on.",
)
index_job = dg.define_asset_job(
    "update_index",
    selection=_only("embedding_index"),
    description="Brings the nearest-neighbour index up to date.",
    executor_def=dg.in_process_executor,
)
duplicates_job = dg.define_asset_job(
    "find_near_duplicates",
    selection=_only("near_duplicates"),
    description="Finds groups of near-identical images.",
    executor_def=dg.in_process_executor,
)
scores_job = dg.define_asset_job(
    "score_captions",
    selection=_only("clip_scores"),
    description="Scores how well a range of shards' captions fit their images.",
    executor_def=dg.in_process_executor,
)


def is_of_command_line(run: dg.DagsterRun) -> bool:
    """Whether a run is executed by a command line's own process, and not by one that a launcher started.

    Args:
        run: Any run.

    Returns:
        True for the runs of `boring-assets embed`.
    """
    return (
        run.job_name == embed_job.name and run.tags.get(ADOPT_TAG) == "true" and run.remote_job_origin is None
    )
