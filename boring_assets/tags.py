"""Tags of runs and materializations, and other shared names; `dagster/...` are Dagster's own."""

DATA_VERSION_TAG = "dagster/data_version"
"""Dagster returns the latest value of this tag for all partitions in one query."""
BACKFILL_TAG = "dagster/backfill"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
RESUME_TAG = "dagster/is_resume_retry"
"""Set by Dagster on a retry "from failure", automatic or by the UI's button."""
RETRY_FAILURES_TAG = "dagster/retry_on_asset_or_op_failure"
"""With the value `false`, Dagster's `run_retries` does not retry the run because a step failed in it."""

MAX_RETRIES_TAG = "dagster/max_retries"
"""How often `run_retries` retries a run, counted over all retries of the first run."""

EMBEDS_TAG = "boring_assets/embeds"
"""On a run of the sensor or the command line: the asset's key. A later run leaves its partitions to it."""
ADOPT_TAG = "boring_assets/adopt"
"""A run with it keeps the partitions that are committed and up to date, and embeds the others."""
REDO_TAG = "boring_assets/redo"
"""A run with it keeps nothing, and may leave the embeddings of other settings beside its own."""
RETRY_TAG = "boring_assets/retry"
"""A run with it embeds only rows that failed before: `true`, or reasons such as `fetch_error,too_large`."""
MAX_SAMPLES_TAG = "boring_assets/max_samples"
DAMAGED_TAG = "boring_assets/damaged_shards"
"""On a failed run that a retry cannot mend: how many shards are damaged; 0 where a setting is wrong."""

FAILED_SHARDS = "failed_shards"
"""Metadata of a failed step: why each shard failed, by key."""

POOL = "gpu"


def range_tags(first: str, last: str) -> dict[str, str]:
    """Returns the run tags for a range of partitions, which keep what is committed already.

    Args:
        first: First partition key of the range, in Dagster's order.
        last: Last partition key.
    """
    return {RANGE_START_TAG: first, RANGE_END_TAG: last, ADOPT_TAG: "true"}
