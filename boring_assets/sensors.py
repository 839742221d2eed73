"""The sensor on the input: registers new shards and requests runs for new and changed ones."""

import base64
import json
import zlib
from collections.abc import Iterator

import dagster as dg

from boring_assets.datasets import Dataset
from boring_assets.errors import BoringError
from boring_assets.jobs import EMBED_JOB
from boring_assets.secrets import without_secret_causes
from boring_assets.settings import Settings
from boring_assets.shard_states import PENDING, ShardStates, State, get_shard_states, ranges, register
from boring_assets.tags import range_tags
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

# Dagster creates a tick's runs one by one: a few requests at a time.
_RUNS_PER_TICK = 10


def define_new_shards(settings: Settings, dataset: Dataset) -> dg.SensorDefinition:
    """The sensor `new_shards`, off until somebody turns it on."""
    version = settings.embedding_version()

    @dg.sensor(
        name=dataset.local_name("new_shards"),
        job_name=dataset.local_name(EMBED_JOB),
        minimum_interval_seconds=settings.sensor_seconds,
        required_resource_keys=dataset.resource_keys("source", "embeddings"),
        description=__doc__,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
    def new_shards(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        source: ShardSource = dataset.resource(context, "source")
        embeddings: EmbeddingsIOManager = dataset.resource(context, "embeddings")
        try:
            embeddings.check_input(source.root())
            found = source.discover()
            added = register(context.instance, found, dataset, settings.device)
            stock = get_shard_states(context.instance, found, version, embeddings.committed, dataset)
        except BoringError as error:
            # An unreachable input is to be seen as a failed tick, not as one with nothing to do.
            raise dg.Failure(description=f"{type(error).__name__}: {error}") from without_secret_causes(error)
        asked = _still_asked(_unpack(context.cursor), stock)
        requests = list(_requests(stock, asked, settings.partitions_per_run))
        cursor = _pack(asked)
        if not requests:
            return dg.SensorResult(skip_reason=dg.SkipReason(_summary(stock, added)), cursor=cursor)
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    return new_shards


def define_automation(settings: Settings, dataset: Dataset) -> dg.SensorDefinition:
    """The sensor that updates `embedding_index` after runs that embed; off until somebody turns it on."""
    name = "index_after_embedding" if dataset.shares_location else "default_automation_condition_sensor"
    return dg.AutomationConditionSensorDefinition(
        dataset.local_name(name),
        target=dg.AssetSelection.assets(dataset.asset("embedding_index")),
        minimum_interval_seconds=settings.sensor_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
    )


def _pack(asked: dict[str, str]) -> str:
    """The cursor: Dagster stores it with each tick, and shows it nowhere, so it is as short as may be."""
    return base64.b85encode(zlib.compress(json.dumps(asked).encode(), 9)).decode()


def _unpack(cursor: str | None) -> dict[str, str]:
    """What `_pack` was given; earlier versions of the project wrote plain JSON."""
    if not cursor or cursor.startswith("{"):
        return dict(json.loads(cursor or "{}"))
    return dict(json.loads(zlib.decompress(base64.b85decode(cursor))))


def _still_asked(asked: dict[str, str], stock: ShardStates) -> dict[str, str]:
    """Versions that were requested and are not done: in the queue, running, or failed for good.

    A failed shard is asked for once a version: its run has retried it already.
    """
    return {k: version for k, version in asked.items() if stock.states.get(k) in (*PENDING, State.RUNNING)}


def _requests(stock: ShardStates, asked: dict[str, str], most: int) -> Iterator[dg.RunRequest]:
    """Requests for the shards that nobody asked for in their present version; notes them as asked.

    They carry no `run_key`: Dagster drops a request whose key it has seen, and a shard can come back in a
    version that it had once. A tick that was cut short keeps its requests and its cursor without one.
    """
    wanted = [key for key in stock.keys(PENDING) if asked.get(key) != stock.shards[key].version]
    # A run in the queue counts as running; what was asked for and is not, was cancelled or failed.
    waiting = sum(stock.states[key] is State.RUNNING for key in asked)
    room = max(0, _RUNS_PER_TICK * most - waiting)
    chosen = set(wanted[:room])
    for first, last, _ in ranges(stock.order, chosen, most)[:_RUNS_PER_TICK]:
        keys = stock.order[stock.order.index(first) : stock.order.index(last) + 1]
        asked.update({key: stock.shards[key].version for key in keys})
        yield dg.RunRequest(tags=range_tags(first, last))


def _summary(stock: ShardStates, added: list[str]) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(stock.count().items()))
    return f"Nothing to request ({counts or 'the input has no shards'}; {len(added)} newly registered)."
