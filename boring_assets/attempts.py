"""The sensor's cursor: what it has requested, how often that failed, and when it is requested again."""

import base64
import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import dagster as dg

from boring_assets.secrets import without_secrets
from boring_assets.shard_states import State
from boring_assets.tags import DAMAGED_TAG, FAILED_SHARDS

DAMAGED_ATTEMPTS = 3
"""How often a damaged shard is requested, until its file changes."""
LONGEST_PAUSE = 3600
_RETRY_SECONDS = 300
"""How long `run_retries` has to create the retry of a failed run, with an event for each partition."""
_RUNS_AT_ONCE = 50
_VERSION_DIGITS = 6
_REASON_LETTERS = 240
_SHOWN_GROUPS = 10
_SHOWN_KEYS = 3


@dataclass(frozen=True)
class Attempt:
    """A shard that was requested, in one version.

    Attributes:
        version: The first digits of the shard's version.
        failures: How many runs failed before they had committed it.
        damaged: In how many of them the shard was damaged.
        retry_at: When it may be requested again, in seconds since the epoch; None while a run has it, and
            after that run was cancelled or deleted.
        reason: Why the last run failed.
    """

    version: str
    failures: int = 0
    damaged: int = 0
    retry_at: int | None = None
    reason: str = ""

    def is_of(self, version: str) -> bool:
        """Returns whether this is an attempt of the shard's present version."""
        return self.version == version[:_VERSION_DIGITS]

    @property
    def is_given_up(self) -> bool:
        """Whether the shard is not requested again in this version."""
        return self.damaged >= DAMAGED_ATTEMPTS

    def is_due(self, now: float) -> bool:
        """Returns whether the shard may be requested again."""
        return self.retry_at is not None and self.retry_at <= now and not self.is_given_up

    def requested(self) -> "Attempt":
        """Returns this attempt while a run has the shard."""
        return replace(self, retry_at=None)


def first_attempt(version: str) -> Attempt:
    """Returns the attempt of a shard that is requested for the first time in a version."""
    return Attempt(version[:_VERSION_DIGITS])


def to_cursor(attempts: Mapping[str, Attempt]) -> str:
    """Returns the cursor: shards that failed together share one entry, and the whole is compressed."""

    def shared(item: tuple[str, Attempt]) -> tuple:
        one = item[1]
        return (one.failures, one.damaged, one.retry_at or 0, one.reason)

    groups = [
        [*facts, {key: attempt.version for key, attempt in group}]
        for facts, group in groupby(sorted(attempts.items(), key=shared), shared)
    ]
    return base64.b85encode(zlib.compress(json.dumps(groups, separators=(",", ":")).encode(), 9)).decode()


def from_cursor(cursor: str | None) -> dict[str, Attempt]:
    """Returns what `to_cursor` was given.

    Earlier releases wrote the version of each shard by its key, as JSON or packed.
    """
    if not cursor:
        return {}
    text = cursor if cursor.startswith("{") else zlib.decompress(base64.b85decode(cursor))
    content = json.loads(text)
    if isinstance(content, dict):
        return {key: first_attempt(version) for key, version in content.items()}
    return {
        key: Attempt(version, failures, damaged, retry_at or None, reason)
        for failures, damaged, retry_at, reason, versions in content
        for key, version in versions.items()
    }


def judge_failures(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    failed: Mapping[str, Attempt],
    pause: int,
) -> dict[str, Attempt]:
    """Sets when each failed shard may be requested again, by the run in which it failed last.

    The pause doubles with each failure, up to an hour. It is longer if `run_retries` is about to retry the
    run, because both would take the shards.

    Args:
        instance: Dagster's instance.
        asset: The asset that the shards are partitions of.
        failed: The shards that have failed.
        pause: Half of the first pause, in seconds.

    Returns:
        The shards with their next time; after `_RUNS_AT_ONCE` runs, the others are left for the next tick.
    """
    if not failed:
        return {}
    storage = instance.event_log_storage
    latest = storage.get_latest_asset_partition_materialization_attempts_without_materializations(asset)
    by_run: dict[str, list[str]] = {}
    for key in failed:
        if key in latest:
            by_run.setdefault(latest[key][0], []).append(key)
    run_ids = list(by_run)[:_RUNS_AT_ONCE]
    judged: dict[str, Attempt] = {}
    for record in instance.get_run_records(dg.RunsFilter(run_ids=run_ids)) if run_ids else ():
        run = record.dagster_run
        ended, reason = record.end_time or time.time(), _reason(instance, run.run_id)
        damaged = int(run.tags.get(DAMAGED_TAG, "0")) > 0
        least = _RETRY_SECONDS if run.is_complete_and_waiting_to_retry else 0
        for key in by_run[run.run_id]:
            failures = failed[key].failures + 1
            wait = max(least, min(max(LONGEST_PAUSE, pause), pause * 2**failures))
            judged[key] = replace(
                failed[key],
                failures=failures,
                damaged=failed[key].damaged + damaged,
                retry_at=int(ended + wait),
                reason=reason,
            )
    return judged


def _reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """Returns why a run failed, in one line."""
    events = (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE)
    texts: list[str] = []
    for entry in instance.all_logs(run_id, of_type=set(events)):
        event = entry.dagster_event
        if event is None:
            continue
        data = event.step_failure_data if event.is_step_failure else None
        if data and data.user_failure_data:
            shards = data.user_failure_data.metadata.get(FAILED_SHARDS)
            by_key: Any = shards.value if shards else {}
            texts.append(next(iter(by_key.values()), data.user_failure_data.description or ""))
        elif data and data.error:
            texts.append((data.error.cause or data.error).message)
        else:
            texts.append(event.message or "")
    text = " ".join((texts[0] if texts else "").split())
    return without_secrets(text)[:_REASON_LETTERS] or "its run failed"


def describe(attempts: Mapping[str, Attempt], states: Mapping[str, State]) -> str:
    """Returns which shards wait, until when and why, for the text of a tick.

    Args:
        attempts: All that was requested and is not done.
        states: Each shard's state.
    """

    def shared(item: tuple[str, Attempt]) -> tuple:
        one = item[1]
        return (one.is_given_up, -(-(one.retry_at or 0) // 60), one.failures, one.reason)

    now = time.time()
    waiting = sorted(
        (item for item in attempts.items() if item[1].retry_at is not None and not item[1].is_due(now)),
        key=shared,
    )
    groups = [(facts, [key for key, _ in group]) for facts, group in groupby(waiting, shared)]
    lines = []
    for (given_up, minute, failures, reason), keys in groups[:_SHOWN_GROUPS]:
        runs = f"{failures} failed run{'s' if failures > 1 else ''}"
        if given_up:
            lines.append(
                f"Not requested again until the file changes, after {runs}: {_named(keys)} ({reason})."
            )
        else:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(minute * 60))
            lines.append(f"Waits until {when}, after {runs}: {_named(keys)} ({reason}).")
    if len(groups) > _SHOWN_GROUPS:
        lines.append(f"{sum(len(keys) for _, keys in groups[_SHOWN_GROUPS:]):,} more wait.")
    ended = (State.NEW, State.CHANGED, State.LOST)
    keys = sorted(key for key, one in attempts.items() if one.retry_at is None and states[key] in ended)
    if keys:
        lines.append(
            f"Run cancelled or deleted: {_named(keys)}. Materialize them, or reset the sensor's cursor."
        )
    return " ".join(lines)


def _named(keys: list[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ", ".join(keys[:_SHOWN_KEYS]) + (f" and {more:,} more" if more > 0 else "")
