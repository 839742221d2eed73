"""Avoids that several machines embed the same shards of one dataset."""

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.jobs import is_of_command_line
from boring_assets.tags import EMBEDS_TAG, RANGE_END_TAG, RANGE_START_TAG

UNFINISHED = [
    status
    for status in dg.DagsterRunStatus
    if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
]
"""The statuses of a run that has not ended."""


def leave_to_earlier_runs(context: dg.AssetExecutionContext, dataset: Dataset) -> list[str]:
    """Returns the partitions of a run; for a command line, without those of earlier unfinished runs.

    A command line chooses no shard of another run. But two of them that start at the same time choose the
    same shards. A run is stored before its step starts, so the later run finds the earlier one here.
    """
    keys, asset = list(context.partition_keys), dataset.embeddings.to_user_string()
    if not is_of_command_line(context.run):  # the sensor would not request again what its run leaves out
        return keys
    filter_ = dg.RunsFilter(statuses=UNFINISHED, tags={EMBEDS_TAG: asset})
    created = {
        record.dagster_run.run_id: (record.create_timestamp, record.dagster_run)
        for record in context.instance.get_run_records(filter_)
    }
    mine = created.pop(context.run.run_id, None)
    earlier = [
        run for when, run in created.values() if mine and (when, run.run_id) < (mine[0], mine[1].run_id)
    ]
    order = {key: number for number, key in enumerate(dataset.keys(context.instance))} if earlier else {}
    for run in earlier:
        first, last = order.get(run.tags[RANGE_START_TAG], 1), order.get(run.tags[RANGE_END_TAG], 0)
        left = [key for key in keys if not first <= order.get(key, -1) <= last]
        if len(left) < len(keys):
            count = len(keys) - len(left)
            context.log.info(
                f"{count} shards are left to run {run.run_id}, which was created before this one."
            )
        keys = left
    return keys
