"""The sensors: `new_shards` embeds what is new in the input, `index_after_embedding` updates the index."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg

from boring_assets.attempts import Attempt, describe, first_attempt, from_cursor, judge_failures, to_cursor
from boring_assets.datasets import Dataset
from boring_assets.errors import BoringError
from boring_assets.jobs import EMBED_JOB
from boring_assets.live_runs import fail_dead_runs
from boring_assets.parts import describe_other_input, get_parts, register_shards
from boring_assets.secrets import without_secret_causes
from boring_assets.settings import Settings
from boring_assets.shard_states import PENDING, ShardStates, State, get_shard_states
from boring_assets.tags import EMBEDS_TAG, range_tags
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

# Dagster creates a tick's runs one by one: a few requests at a time.
_RUNS_PER_TICK = 10


def define_new_shards(
    settings: Settings, dataset: Dataset, parts: Sequence[Dataset], jobs: Sequence[Any]
) -> dg.SensorDefinition:
    """The sensor `new_shards`, off by default.

    Args:
        settings: The dataset's settings.
        dataset: The dataset's names.
        parts: Its parts that have assets in this code location, or itself.
        jobs: Their jobs that embed.
    """
    version = settings.embedding_version()

    @dg.sensor(
        name=dataset.local_name("new_shards"),
        jobs=jobs,
        minimum_interval_seconds=settings.sensor_seconds,
        required_resource_keys=dataset.resource_keys("source", "embeddings"),
        description="Turn this on first: it finds new and changed shards in the input, and embeds them. "
        "A shard that failed is tried again after a growing pause.",
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def new_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        source: ShardSource = dataset.resource(context, "source")
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        instance = context.instance
        try:
            fail_dead_runs(instance)
            embeddings.check_input(source.root())
            found = source.discover()
            other_input = describe_other_input(instance, settings)
            added = register_shards(instance, found, settings)
            now = get_parts(settings, dataset)
            states = get_shard_states(instance, found, version, embeddings.committed, now)
        except BoringError as error:
            # The UI must show an unreachable input as a failed tick, not as one with nothing to do.
            raise dg.Failure(description=f"{type(error).__name__}: {error}") from without_secret_causes(error)
        attempts = _update(instance, from_cursor(context.cursor), states, settings)
        unloaded = [part for part in now if part not in parts]
        texts = (
            _summary(states, added),
            describe(attempts, states.states),
            _describe_unloaded(unloaded),
            _describe_refused(found.refused),
            other_input,
        )
        text = " ".join(filter(None, texts))
        requests = list(_requests(states, attempts, settings.partitions_per_run, unloaded))
        if not requests:
            return dg.SensorResult(skip_reason=dg.SkipReason(text), cursor=to_cursor(attempts))
        context.log.info(text)
        return dg.SensorResult(run_requests=requests, cursor=to_cursor(attempts))

    return new_shards


def define_automation(settings: Settings, dataset: Dataset) -> dg.SensorDefinition:
    """The sensor that updates `embedding_index` after runs that embed; off by default."""
    return dg.AutomationConditionSensorDefinition(
        dataset.local_name("index_after_embedding"),
        description="Optional, with the extra `search`: updates `embedding_index` after runs that embed.",
        target=dg.AssetSelection.assets(dataset.asset("embedding_index")),
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )


def _update(
    instance: dg.DagsterInstance,
    requested: Mapping[str, Attempt],
    states: ShardStates,
    settings: Settings,
) -> dict[str, Attempt]:
    """Returns the attempts of the shards that are not done; failed ones have the time of the next one."""
    attempts: dict[str, Attempt] = {}
    failed: dict[str, Attempt] = {}
    for key, state in states.states.items():
        attempt = requested.get(key)
        if state is State.RUNNING:
            if attempt:
                attempts[key] = attempt.requested()
        elif state in PENDING:
            version = states.shards[key].version
            if attempt is None and state is State.FAILED:  # in a run that the sensor did not request
                attempt = first_attempt(version)
            if attempt and attempt.is_of(version):
                attempts[key] = attempt
                if state is State.FAILED and attempt.retry_at is None:
                    failed[key] = attempt
    for part, keys in states.by_part():
        here = {key: failed[key] for key in keys if key in failed} if failed else {}
        attempts |= judge_failures(instance, part.embeddings, here, settings.sensor_seconds)
    return attempts


def _requests(
    states: ShardStates, attempts: dict[str, Attempt], most: int, unloaded: Collection[Dataset]
) -> Iterator[dg.RunRequest]:
    """Yields requests for the shards that are due, and marks them as requested in `attempts`.

    Shards that failed go into smaller runs each time: a shard that crashes the process fails the others too.

    The requests have no `run_key`: Dagster ignores a request with a known key, and a shard can change back to
    an earlier version. A tick that was interrupted keeps its requests and its cursor without a key.

    Args:
        states: Each shard's state.
        attempts: What was requested and is not done.
        most: Most partitions in one run.
        unloaded: Parts without assets in this code location.
    """
    now = time.time()
    due: dict[int, list[str]] = {}
    waiting = {key for part, keys in states.by_part() if part in unloaded for key in keys}
    for key in states.keys(PENDING):
        if key in waiting:
            continue
        attempt = attempts.get(key)
        if attempt is None or attempt.is_due(now):
            due.setdefault(attempt.failures if attempt else 0, []).append(key)
    running = sum(states.states[key] is State.RUNNING for key in attempts)
    room, runs = _RUNS_PER_TICK * most - running, _RUNS_PER_TICK
    for failures, keys in sorted(due.items()):
        chosen = keys[: max(0, room)]
        for part, one in islice(states.ranges(chosen, max(1, most >> failures)), runs):
            start = states.order.index(one.first)
            for key in states.order[start : start + one.size]:
                attempt = attempts.get(key) or first_attempt(states.shards[key].version)
                attempts[key] = attempt.requested()
            room, runs = room - one.size, runs - 1
            tags = range_tags(one.first, one.last) | {EMBEDS_TAG: part.embeddings.to_user_string()}
            yield dg.RunRequest(job_name=part.local_name(EMBED_JOB), tags=tags)


def _describe_unloaded(parts: Sequence[Dataset]) -> str:
    """Returns what to do for the parts that are new since the code location was loaded."""
    names = ", ".join(part.part for part in parts)
    return f"New parts: {names}. Reload the code location; until then their shards wait." if parts else ""


def _describe_refused(refused: Mapping[str, str]) -> str:
    """Returns which files look like shards but are refused."""
    if not refused:
        return ""
    path, why = next(iter(refused.items()))
    more = f" `boring-assets status` names all {len(refused):,}." if len(refused) > 1 else ""
    return f"Left out: {path}: {why}{more}"


def _summary(states: ShardStates, added: list[str]) -> str:
    """Returns how many shards are in each state."""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.count().items()))
    return f"Shards: {counts or 'none in the input'}; {len(added)} newly registered."
