"""Short runs that wait in the queue for the device that a run has, done along with it.

Dagster makes one run of each contiguous range of a selection, so 50 scattered shards are 50 runs, each with
its own plan, resources and start: half a second for shards that may need less. The first of them takes the
others' shards into its own stream, and reports the events of each run when that run's shards are committed.

A run that waits is not touched before all of its shards are committed. Whatever else happens, be it that a
shard fails, that this process is killed or that somebody cancels the run, it is still in the queue, and
Dagster starts it as if nothing had been.
"""

from typing import Any

import dagster as dg
from dagster._core.events import EngineEventData, StepMaterializationData, StepSuccessData
from dagster._core.instance.config import PoolGranularity

from boring_assets.catalogue import MAX_SAMPLES_TAG, POOL, RANGE_END_TAG, RANGE_START_TAG
from boring_assets.datasets import Dataset
from boring_assets.instance.homes import HOME_TAG, WORKER_TAG

CARRIER_TAG = "boring_assets/done_by"
"""Run tag: which run embedded this one's shards along with its own."""
# The events of a run come when all of it is committed: the fewer partitions, the less a crash can cost.
_MOST_PARTITIONS = 8
_MOST_RUNS = 500
_OWN_TAGS = (RANGE_START_TAG, RANGE_END_TAG, WORKER_TAG, HOME_TAG)


class WaitingRuns:
    """The runs in the queue that a run does along with itself.

    Args:
        context: The run.
        dataset: Whose shards it embeds.
        most: Most partitions to take along.

    Attributes:
        keys: Their partition keys, in the order of the queue.
    """

    def __init__(self, context: dg.AssetExecutionContext, dataset: Dataset, most: int) -> None:
        self._instance, self._run = context.instance, context.run
        self._step = context.get_step_execution_context().step.key
        self._runs: dict[str, dg.DagsterRun] = {}
        self._left: dict[str, set[str]] = {}
        self._events: dict[str, list[dg.AssetMaterialization]] = {}
        taken = set(context.partition_keys)
        for run, keys in self._find(dataset):
            # One that shares a partition with another run is left to be what it was made for.
            if len(keys) <= min(most, _MOST_PARTITIONS) and taken.isdisjoint(keys):
                most -= len(keys)
                taken.update(keys)
                self._left[run.run_id] = set(keys)
                self._events[run.run_id] = []
                self._runs |= dict.fromkeys(keys, run)
        self.keys = list(self._runs)

    def __contains__(self, key: str) -> bool:
        """Whether a partition is of one of these runs."""
        return key in self._runs

    def committed(self, event: dg.AssetMaterialization) -> None:
        """Notes a committed partition; reports its run with all its events where that was the last one.

        Args:
            event: The partition's event.
        """
        key = str(event.partition)
        run_id = self._runs[key].run_id
        self._left[run_id].discard(key)
        self._events[run_id].append(event)
        if not self._left[run_id]:
            self._report(run_id)

    def _find(self, dataset: Dataset) -> list[tuple[dg.DagsterRun, list[str]]]:
        """Runs that differ from this one by their range alone, and their partition keys."""
        mine = self._kind(self._run)
        if RANGE_START_TAG not in self._run.tags or MAX_SAMPLES_TAG in self._run.tags or not self._is_alone():
            return []
        queued = dg.RunsFilter(job_name=self._run.job_name, statuses=[dg.DagsterRunStatus.QUEUED])
        runs = self._instance.get_runs(queued, limit=_MOST_RUNS, ascending=True)
        alike = [run for run in runs if RANGE_START_TAG in run.tags and self._kind(run) == mine]
        if not alike:
            return []
        order = dataset.keys(self._instance)
        at = {key: number for number, key in enumerate(order)}

        def keys(run: dg.DagsterRun) -> list[str]:
            first, last = (at.get(run.tags[tag]) for tag in (RANGE_START_TAG, RANGE_END_TAG))
            return [] if first is None or last is None else order[first : last + 1]

        return [(run, found) for run in alike if (found := keys(run))]

    def _is_alone(self) -> bool:
        """Whether the runs that wait cannot be started meanwhile: this one has the only place in the pool."""
        pools = self._instance.get_concurrency_config().pool_config
        if self._run.remote_job_origin is None or pools.pool_granularity is not PoolGranularity.RUN:
            return False
        limits = {limit.name: limit.limit for limit in self._instance.event_log_storage.get_pool_limits()}
        return limits.get(POOL) == 1

    @staticmethod
    def _kind(run: dg.DagsterRun) -> tuple[Any, ...]:
        tags = {name: value for name, value in run.tags.items() if name not in _OWN_TAGS}
        return run.job_name, run.job_code_origin, run.asset_selection, run.run_config, tags

    def _report(self, run_id: str) -> None:
        """Gives a run the events that it would have reported, unless it is no longer in the queue."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.status is not dg.DagsterRunStatus.QUEUED:
            return
        mine = {name: self._run.tags[name] for name in (WORKER_TAG, HOME_TAG) if name in self._run.tags}
        self._instance.add_run_tags(run_id, {**mine, CARRIER_TAG: self._run.run_id})
        said = f"Embedded by run {self._run.run_id}, along with its own shards."
        types = dg.DagsterEventType
        self._tell(run, types.PIPELINE_STARTING)
        self._tell(run, types.PIPELINE_START, message=said)
        self._tell(run, types.ENGINE_EVENT, message=said, event_specific_data=EngineEventData({}))
        self._tell(run, types.STEP_START, step_key=self._step)
        for event in self._events.pop(run_id):
            data = StepMaterializationData(event)
            self._tell(run, types.ASSET_MATERIALIZATION, step_key=self._step, event_specific_data=data)
        self._tell(run, types.STEP_SUCCESS, step_key=self._step, event_specific_data=StepSuccessData(0.0))
        self._tell(run, types.PIPELINE_SUCCESS, message=said)

    def _tell(self, run: dg.DagsterRun, what: dg.DagsterEventType, **more: Any) -> None:
        self._instance.report_dagster_event(dg.DagsterEvent(what.value, run.job_name, **more), run.run_id)
