"""Fails a run of an asset with the reasons, and lets Dagster retry it only if that may help."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from boring_assets.errors import BoringError
from boring_assets.secrets import without_secret_causes
from boring_assets.storage.errors import is_transient
from boring_assets.tags import DAMAGED_TAG, FAILED_SHARDS, MAX_RETRIES_TAG, RETRY_FAILURES_TAG

_LISTED = 20
_STORED = 1000


@contextmanager
def failing_with_reason(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Turns an error of the project into a failed step that shows its message.

    Raises:
        dg.Failure: An error of the project was raised in the block.
    """
    try:
        yield
    except BoringError as error:
        _allow_retries(context, is_transient(error))
        raise dg.Failure(description=f"{type(error).__name__}: {error}") from without_secret_causes(error)


def fail_for_shards(context: dg.AssetExecutionContext, failed: Mapping[str, BoringError], total: int) -> None:
    """Fails the step where some of its shards failed, and names them.

    Raises:
        dg.Failure: There are failed shards.
    """
    if not failed:
        return
    reasons = {key: str(error) for key, error in failed.items()}
    lines = [f"- {key}: {reason}" for key, reason in list(reasons.items())[:_LISTED]]
    if len(reasons) > _LISTED:
        lines.append(f"... and {len(reasons) - _LISTED} more")
    _allow_retries(context, any(map(is_transient, failed.values())), damaged=len(failed))
    raise dg.Failure(
        description="\n".join([f"{len(failed)} of {total} shards failed; the others are committed.", *lines]),
        metadata={FAILED_SHARDS: dg.MetadataValue.json(dict(list(reasons.items())[:_STORED]))},
    )


def allow_more_retries(context: dg.AssetExecutionContext) -> None:
    """Resets the number of retries of a run that has committed a shard.

    `max_retries` then limits only attempts in a row without a new shard, such as those with a shard that
    crashes the process. A spot machine may be taken away any number of times.
    """
    instance, run = context.instance, context.run
    if run.root_run_id is None or not instance.run_retries_enabled:
        return
    root = instance.get_run_by_id(run.root_run_id)
    group = instance.get_run_group(run.run_id)
    if root is None or group is None or MAX_RETRIES_TAG in root.tags:  # the user set a limit
        return
    most = len(list(group[1])) - 1 + instance.run_retries_max_retries
    instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: str(most)})


def _allow_retries(context: dg.AssetExecutionContext, allowed: bool, damaged: int = 0) -> None:
    """Tags the run for Dagster's `run_retries` and for the sensor; a retry inherits its parent's tags."""
    if not allowed:
        tags = {RETRY_FAILURES_TAG: "false", DAMAGED_TAG: str(damaged)}
    elif DAMAGED_TAG in context.run.tags:
        tags = {RETRY_FAILURES_TAG: "true", DAMAGED_TAG: "0"}
    else:
        return
    context.instance.add_run_tags(context.run.run_id, tags)
