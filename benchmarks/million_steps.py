"""The steps of `benchmarks.million`; each runs in its own process."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.catalogue_steps import store_event, tick
from boring_assets.datasets import Dataset
from boring_assets.parts import get_parts, register_shards
from boring_assets.settings import Settings
from resources.source import ShardSource
from tests.e2e.processes import Home

_AT_ONCE = 5000


def discover(home: Home, settings: Settings) -> int:
    return len(ShardSource.from_settings(settings).discover().shards)


def register(home: Home, settings: Settings) -> str:
    found = ShardSource.from_settings(settings).discover()
    new = len(register_shards(home.instance, found, settings))
    return f"{new} new, {len(get_parts(settings))} parts"


def load_definitions(home: Home, settings: Settings) -> str:
    from boring_assets.definitions import build_definitions

    repository = build_definitions(settings).get_repository_def()
    return f"{len(repository.asset_graph.get_all_asset_keys())} assets"


def first_tick(home: Home, settings: Settings) -> str:
    requests, cursor = tick(home, settings)
    return f"{requests} runs requested, cursor of {len(cursor) // 1024} KiB"


def store_done(home: Home, settings: Settings) -> str:
    """Stores a materialization and an empty embeddings file of each shard that has none yet."""
    from boring_assets.definitions import build_definitions

    defs = build_definitions(settings)
    shards = {shard.key: shard for shard in ShardSource.from_settings(settings).discover().shards}
    for part in get_parts(settings):
        mine = [shards[key] for key in part.keys(home.instance)]
        done = home.instance.get_materialized_partitions(part.embeddings)
        if todo := [shard for shard in mine if shard.key not in done]:
            run = home.instance.create_run_for_job(defs.resolve_job_def(part.local_name("embed_shards")))
            home.instance.report_run_failed(run)
            store_event(home, settings, part, run, todo[0])
            _store_others(home, part, run, todo)
        _link_files(home.output / "image_embeddings", [shard.key for shard in mine])
    return f"{len(shards)} materializations"


def _store_others(home: Home, part: Dataset, run: Any, shards: list[Any]) -> None:
    """Stores the same rows for the other shards, many at once: one by one, SQLite takes 50 ms for each."""
    from dagster._core.storage.event_log.schema import AssetEventTagsTable, SqlEventLogStorageTable
    from sqlalchemy import func, select, text

    first = shards[0]
    storage: Any = home.instance.event_log_storage
    events, tags = SqlEventLogStorageTable, AssetEventTagsTable
    with storage.index_connection() as connection:
        here = (events.c.run_id == run.run_id, events.c.dagster_event_type == "ASSET_MATERIALIZATION")
        event = dict(connection.execute(select(events).where(*here)).one()._mapping)
        query = select(tags).where(tags.c.event_id == event["id"])
        first_tags = [dict(row._mapping) for row in connection.execute(query)]
        last = connection.execute(select(func.max(events.c.id))).scalar_one()
    rows = iter(enumerate(shards[1:], last + 1))
    while some := list(islice(rows, _AT_ONCE)):
        new_events, new_tags = [], []
        for number, shard in some:
            body = event["event"].replace(first.key, shard.key).replace(first.version, shard.version)
            new_events.append({**event, "id": number, "event": body, "partition": shard.key})
            for tag in first_tags:
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
