"""The job that backfills, the sensor and the command line run."""

import dagster as dg

from boring_assets.catalogue import ADOPT_TAG, ASSET_KEY, RANGE_END_TAG, RANGE_START_TAG

embed_job = dg.define_asset_job(
    "embed_shards",
    selection=dg.AssetSelection.assets(ASSET_KEY),
    description="Embeds a range of shards in one process with one loaded model.",
    executor_def=dg.in_process_executor,
)

index_job = dg.define_asset_job(
    "update_index",
    selection=dg.AssetSelection.assets("embedding_index"),
    description="Brings the nearest-neighbour index up to date.",
    executor_def=dg.in_process_executor,
)
duplicates_job = dg.define_asset_job(
    "find_near_duplicates",
    selection=dg.AssetSelection.assets("near_duplicates"),
    description="Finds groups of near-identical images.",
    executor_def=dg.in_process_executor,
)
scores_job = dg.define_asset_job(
    "score_captions",
    selection=dg.AssetSelection.assets("clip_scores"),
    description="Scores how well a range of shards' captions fit their images.",
    executor_def=dg.in_process_executor,
)


def range_tags(first: str, last: str) -> dict[str, str]:
    """Run tags for a range of partitions that takes over what is committed already.

    Args:
        first: First partition key of the range, in Dagster's order.
        last: Last partition key.

    Returns:
        Tags for a run of `embed_shards`.
    """
    return {RANGE_START_TAG: first, RANGE_END_TAG: last, ADOPT_TAG: "true"}
