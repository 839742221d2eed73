"""The steps of `benchmarks.million`, each in a process of its own."""

import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.catalogue_steps import settings_of
from boring_assets.datasets import Dataset
from boring_assets.parts import get_parts, register_shards
from boring_assets.settings import Settings
from boring_assets.shard_states import get_shard_states
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from tests.e2e.processes import Home

_AT_ONCE = 5000


def discover(home: Home, split: int) -> int:
    return len(ShardSource.from_settings(settings_of(home, split=split)).discover().shards)


def register(home: Home, split: int) -> str:
    settings = settings_of(home, split=split)
    found = ShardSource.from_settings(settings).discover()
    new = len(register_shards(home.instance, found, settings))
    return f"{new} new, {len(get_parts(settings))} parts"


def load_definitions(home: Home, split: int) -> str:
    from boring_assets.definitions import build_definitions

    repository = build_definitions(settings_of(home, split=split)).get_repository_def()
    return f"{len(repository.asset_graph.get_all_asset_keys())} assets"


def tick(home: Home, split: int) -> str:
    """One look of the sensor, without its cursor."""
    import dagster as dg

    from boring_assets.definitions import build_definitions

    settings = settings_of(home, split=split)
    resources = {
        "source": ShardSource.from_settings(settings),
        "embeddings": EmbeddingsIOManager.from_settings(settings),
    }
    context = dg.build_sensor_context(instance=home.instance, resources=resources)
    data = build_definitions(settings).resolve_sensor_def("new_shards").evaluate_tick(context)
    return f"{len(data.run_requests or ())} runs requested, cursor of {len(data.cursor or '') // 1024} KiB"


def count_states(home: Home, split: int) -> dict[str, int]:
    settings = settings_of(home, split=split)
    found = ShardSource.from_settings(settings).discover()
    committed = EmbeddingsIOManager.from_settings(settings).committed
    parts = get_parts(settings)
    states = get_shard_states(home.instance, found, settings.embedding_version(), committed, parts)
    return {state.value: count for state, count in states.count().items()}


def store_done(home: Home, split: int) -> str:
    """A materialization and an empty embeddings file of each shard; goes on where a call was cut short."""
    from boring_assets.definitions import build_definitions

    settings = settings_of(home, split=split)
    defs = build_definitions(settings)
    shards = {shard.key: shard for shard in ShardSource.from_settings(settings).discover().shards}
    for part in get_parts(settings):
        mine = [shards[key] for key in part.keys(home.instance)]
        done = home.instance.get_materialized_partitions(part.embeddings)
        if todo := [shard for shard in mine if shard.key not in done]:
            run = home.instance.create_run_for_job(defs.resolve_job_def(part.local_name("embed_shards")))
            home.instance.report_run_failed(run)
            _store_first(home, settings, part, run, todo[0])
            _store_others(home, part, run, todo)
        _link_files(home.output / "image_embeddings", [shard.key for shard in mine])
    return f"{len(shards)} materializations"


def _store_first(home: Home, settings: Settings, part: Dataset, run: Any, shard: Any) -> None:
    """One as a run stores it."""
    from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
    from dagster._core.events.log import EventLogEntry

    from boring_assets.assets.events import materialization

    facts = {
        "rows": 10_000, "embedded": 9_990, "failed": 10, "failed_by_reason": {"not_downloaded": 10},
        "model": "boring-tiny", "pretrained": "", "weights_digest": "0" * 64, "precision": "fp32",
        "settings": settings.embedding_version(),
    }  # fmt: skip
    more = {"seconds": 12.5, "images_per_second": 800.0, "device": "cuda:0"}
    uris = tuple(f"{home.output}/image_{kind}/{shard.key}.parquet" for kind in ("embeddings", "failures"))
    event = part.with_provenance(materialization(part.embeddings, shard, facts, (uris[0], uris[1]), more))
    step = part.embeddings.to_python_identifier()
    entry = EventLogEntry(
        error_info=None, level=20, user_message="", run_id=run.run_id, timestamp=time.time(),
        step_key=step, job_name=run.job_name,
        dagster_event=DagsterEvent(
            DagsterEventType.ASSET_MATERIALIZATION.value, run.job_name, step_key=step,
            event_specific_data=StepMaterializationData(event),
        ),
    )  # fmt: skip
    home.instance.event_log_storage.store_event(entry)


def _store_others(home: Home, part: Dataset, run: Any, shards: list[Any]) -> None:
    """The same rows for the others, many at once: one by one, SQLite takes 50 ms for each."""
    from dagster._core.storage.event_log.schema import AssetEventTagsTable, SqlEventLogStorageTable
    from sqlalchemy import func, select, text

    first = shards[0]
    storage: Any = home.instance.event_log_storage
    events, tags = SqlEventLogStorageTable, AssetEventTagsTable
    with storage.index_connection() as connection:
        here = (events.c.run_id == run.run_id, events.c.dagster_event_type == "ASSET_MATERIALIZATION")
        event = dict(connection.execute(select(events).where(*here)).one()._mapping)
        its_tags = select(tags).where(tags.c.event_id == event["id"])
        its = [dict(row._mapping) for row in connection.execute(its_tags)]
        last = connection.execute(select(func.max(events.c.id))).scalar_one()
    rows = iter(enumerate(shards[1:], last + 1))
    while some := list(islice(rows, _AT_ONCE)):
        new_events, new_tags = [], []
        for number, shard in some:
            body = event["event"].replace(first.key, shard.key).replace(first.version, shard.version)
            new_events.append({**event, "id": number, "event": body, "partition": shard.key})
            for tag in its:
                value = tag["value"].replace(first.version, shard.version)
                new_tags.append({**tag, "event_id": number, "value": value})
                del new_tags[-1]["id"]
        with storage.index_connection() as connection, connection.begin_nested():
            connection.execute(events.insert(), new_events)
            connection.execute(tags.insert(), new_tags)
    if "postgres" in type(storage).__name__.lower():
        with storage.index_connection() as connection:
            connection.execute(text("select setval('event_logs_id_seq', (select max(id) from event_logs))"))


def _link_files(root: Path, keys: list[str]) -> None:
    folder, source = None, root
    for key in keys:
        path = root / f"{key}.parquet"
        if path.parent != folder:
            folder = path.parent
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
            source = path
        elif not path.exists():
            os.link(source, path)
