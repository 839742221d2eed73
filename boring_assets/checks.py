"""Asset checks of `image_embeddings`, over everything that is committed.

One step reads each committed file once in its lifetime and gives eight results, so what it costs does not
grow with the number of partitions in Dagster's event log. Each result names the partitions that are wrong.
"""

import inspect
from collections.abc import Iterator

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.errors import BoringError
from boring_assets.output.judgement import CHECKS, Committed, Found
from boring_assets.output.measures import measure_all
from boring_assets.settings import Settings
from boring_assets.tags import BACKFILL_TAG
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

_NAMED = 50
_WAITING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED]


def define_checks(settings: Settings, dataset: Dataset) -> dg.AssetChecksDefinition:
    """The checks of `image_embeddings`; none of them blocks anything."""
    specs = [
        dg.AssetCheckSpec(name, asset=dataset.embeddings, description=inspect.getdoc(find))
        for name, (_, find) in CHECKS.items()
    ]
    by_output = {spec.get_python_identifier(): spec for spec in specs}

    @dg.op(
        name=dataset.local_name("image_embeddings_checks"),
        out={name: dg.Out(dg.Nothing, is_required=False) for name in by_output},
        tags={"dagster/priority": "-1"},  # a run that embeds does so first
        required_resource_keys=dataset.resource_keys("source", "embeddings"),
    )
    def image_embeddings_checks(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckResult]:
        source: ShardSource = dataset.resource(context, "source")
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        if _is_followed(context.instance, context.run):
            context.log.info("Further runs of this backfill wait; the last one of them checks everything.")
            return
        wanted = {key.name for key in context.selected_asset_check_keys}
        try:
            committed = look(context.instance, source, embeddings, settings, dataset)
        except BoringError as error:
            # A check must not fail the run that it follows; one that could not look has not passed.
            yield from (_unknown(name, error, dataset) for name in CHECKS if name in wanted)
            return
        for name, (severity, find) in CHECKS.items():
            if name in wanted:
                yield _result(name, severity, find(committed), len(committed.measures), dataset)

    # `multi_asset_check` would make this step wait for an output of the asset's step, which reports each
    # partition by itself and has none: in every run of the web UI the checks would count as skipped.
    return dg.AssetChecksDefinition.create(
        keys_by_input_name={},
        node_def=image_embeddings_checks,
        check_specs_by_output_name=by_output,
        can_subset=True,
    )


def _is_followed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether another run of the same backfill is still to be started, which will look at the same output."""
    if BACKFILL_TAG not in run.tags:
        return False
    tags = {BACKFILL_TAG: run.tags[BACKFILL_TAG]}
    return bool(instance.get_run_ids(dg.RunsFilter(tags=tags, statuses=_WAITING), limit=1))


def look(
    instance: dg.DagsterInstance,
    source: ShardSource,
    embeddings: EmbeddingsIOManager,
    settings: Settings,
    dataset: Dataset,
) -> Committed:
    """Everything that the checks look at, in the order in which the partitions were registered.

    Raises:
        StorageError: The input or the output cannot be listed.
        SettingsError: One of them is not set.
    """
    # Dagster is asked before the output is listed, since a run commits before it reports.
    reported = frozenset(instance.get_materialized_partitions(dataset.embeddings))
    order = {key: at for at, key in enumerate(dataset.keys(instance))}
    measures = sorted(measure_all(embeddings.root()), key=lambda one: order.get(one.key, len(order)))
    versions = {shard.key: shard.version for shard in source.discover().shards}
    version, max_failure_rate = settings.embedding_version(), settings.max_failure_rate
    return Committed(measures, reported, versions, version, max_failure_rate, settings.max_drift)


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
