"""Asset checks of `image_embeddings`, over everything that is committed.

One step evaluates all eight checks and reads each committed file only once, so its cost does not grow with
Dagster's event log. Each result names the partitions that are wrong.
"""

import inspect
from collections.abc import Iterable, Iterator

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.errors import BoringError
from boring_assets.output.judgement import CHECKS, Committed, Found
from boring_assets.output.measures import measure_all
from boring_assets.settings import Settings
from boring_assets.tags import BACKFILL_TAG, RESUME_TAG
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

STEP = "image_embeddings_checks"
_NAMED = 50
_Context = dg.OpExecutionContext | dg.AssetExecutionContext
_WAITING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED]


def define_checks(settings: Settings, dataset: Dataset) -> dg.AssetChecksDefinition:
    """The checks of `image_embeddings`; none of them blocks anything."""
    specs = [
        dg.AssetCheckSpec(name, asset=dataset.embeddings, description=inspect.getdoc(find))
        for name, (_, find) in CHECKS.items()
    ]
    by_output = {spec.get_python_identifier(): spec for spec in specs}

    @dg.op(
        name=dataset.local_name(STEP),
        out={name: dg.Out(dg.Nothing, is_required=False) for name in by_output},
        tags={"dagster/priority": "-1"},  # a run that embeds does so first
        required_resource_keys=dataset.resource_keys("source", "embeddings"),
    )
    def image_embeddings_checks(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckResult]:
        if _is_followed(context.instance, context.run):
            context.log.info("More runs of this backfill are queued; the last one evaluates the checks.")
            return
        wanted = {key.name for key in context.selected_asset_check_keys}
        results = [one for one in _evaluate(context, settings, dataset) if one.check_name in wanted]
        yield from results
        # A run of the backfill that was created later has a newer row, which the UI shows.
        if _is_newer_run_planned(context.instance, context.run, wanted, dataset):
            _report(context.instance, results)

    # With `multi_asset_check`, this step would wait for an output of the asset's step. That step reports its
    # partitions as events and has no output, so the web UI would show the checks as skipped.
    return dg.AssetChecksDefinition.create(
        keys_by_input_name={},
        node_def=image_embeddings_checks,
        check_specs_by_output_name=by_output,
        can_subset=True,
    )


def evaluate_after_retry(context: dg.AssetExecutionContext, settings: Settings, dataset: Dataset) -> None:
    """Reports the checks at the end of a retry, which repeats the failed step and not the checks' step.

    Dagster shows checks as not evaluated as soon as a partition is reported after them, and a retry reports
    all of its partitions.
    """
    steps = context.run.step_keys_to_execute or ()
    step = dataset.local_name(STEP)
    if context.run.tags.get(RESUME_TAG) != "true" or step in steps:
        return
    if not _is_followed(context.instance, context.run):
        _report(context.instance, _evaluate(context, settings, dataset))


def _evaluate(context: _Context, settings: Settings, dataset: Dataset) -> list[dg.AssetCheckResult]:
    """Returns the result of each check over everything that is committed."""
    try:
        committed = _read_committed(context, settings, dataset)
    except BoringError as error:
        # A check must not fail its run; a check that could not run has not passed.
        return [_unknown(name, error, dataset) for name in CHECKS]
    return [
        _result(name, severity, find(committed), len(committed.measures), dataset)
        for name, (severity, find) in CHECKS.items()
    ]


def _report(instance: dg.DagsterInstance, results: Iterable[dg.AssetCheckResult]) -> None:
    """Stores results outside of a run's plan."""
    for result in results:
        assert result.asset_key is not None and result.check_name is not None  # noqa: PT018
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=result.asset_key,
                check_name=result.check_name,
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
            )
        )


def _is_newer_run_planned(
    instance: dg.DagsterInstance, run: dg.DagsterRun, names: set[str], dataset: Dataset
) -> bool:
    """Returns whether Dagster's newest record of one of these checks belongs to another run."""
    keys = [dg.AssetCheckKey(dataset.embeddings, name) for name in names]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return any(record.run_id != run.run_id for record in latest.values())


def _is_followed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Returns whether another run of the same backfill is queued; it will check the same output."""
    if BACKFILL_TAG not in run.tags:
        return False
    tags = {BACKFILL_TAG: run.tags[BACKFILL_TAG]}
    return bool(instance.get_run_ids(dg.RunsFilter(tags=tags, statuses=_WAITING), limit=1))


def _read_committed(context: _Context, settings: Settings, dataset: Dataset) -> Committed:
    """Returns what the checks need, in the order in which the partitions were registered.

    Raises:
        StorageError: The input or the output cannot be listed.
        SettingsError: One of them is not set.
    """
    source: ShardSource = dataset.resource(context, "source")
    embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
    # First Dagster's record, then the output: a run commits before it reports.
    reported = context.instance.get_materialized_partitions(dataset.embeddings)
    order = {key: at for at, key in enumerate(dataset.keys(context.instance))}
    mine = order if dataset.part else None
    measures = measure_all(embeddings.root(), dataset.part, mine)
    measures.sort(key=lambda one: order.get(one.key, len(order)))
    shards = source.discover().shards
    versions = {shard.key: shard.version for shard in shards if mine is None or shard.key in mine}
    version, max_failure_rate = settings.embedding_version(), settings.max_failure_rate
    known = frozenset(reported & order.keys())  # Dagster keeps the events of partitions that were deleted
    return Committed(measures, known, versions, version, max_failure_rate, settings.max_drift)


def _result(
    name: str, severity: dg.AssetCheckSeverity, found: Found, partitions: int, dataset: Dataset
) -> dg.AssetCheckResult:
    bad = found.problems
    metadata: dict[str, dg.MetadataValue | int | float] = {
        "partitions": partitions,
        "bad_partitions": len(bad),
        **found.numbers,
    }
    if bad:
        records = [
            dg.TableRecord({"partition": key, "problem": why}) for key, why in list(bad.items())[:_NAMED]
        ]
        metadata["bad"] = dg.MetadataValue.table(records)
    key, why = next(iter(bad.items()), ("", ""))
    more = f", and {len(bad) - 1:,} more" if len(bad) > 1 else ""
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=dataset.embeddings,
        passed=not bad,
        severity=severity,
        description=f"{key}: {why}{more}" if bad else None,
        metadata=metadata,
    )


def _unknown(name: str, error: BoringError, dataset: Dataset) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=dataset.embeddings,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"It could not be checked. {error}",
    )
