"""The steps of `benchmarks.catalogue`: what is written, and what runs in a process of its own."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.parts import register_shards
from boring_assets.settings import Settings
from boring_assets.shard_states import get_shard_states
from tests.e2e.processes import Home


def names(shards: int, folders: int) -> list[str]:
    """The shards' paths below the input, without a suffix."""
    each = -(-shards // folders) if folders else 0
    return [f"part-{n // each:04d}/{n % each:05d}" if each else f"{n:05d}" for n in range(shards)]


def small_parquet(seed: int = 0) -> bytes:
    """A shard without images."""
    sink = pa.BufferOutputStream()
    keys = [f"{seed}{n:04d}" for n in range(5)]
    pq.write_table(pa.table({"url": [f"http://localhost/{key}.jpg" for key in keys], "key": keys}), sink)
    return bytes(sink.getvalue())


def write_local(root: Path, stems: list[str], seed: int = 0) -> None:
    body = small_parquet(seed)
    for stem in stems:
        path = root / f"{stem}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        (root / f"{stem}_stats.json").write_bytes(b"{}")


def write_s3(uri: str, stems: list[str]) -> None:
    """Puts the same objects, many at once; s3fs would spend most of the time on itself."""
    import boto3
    from botocore.config import Config

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3", config=Config(max_pool_connections=16))
    body = small_parquet()

    def put(stem: str) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{stem}.parquet", Body=body)
        client.put_object(Bucket=bucket, Key=f"{prefix}/{stem}_stats.json", Body=b"{}")

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, stems):
            pass


def discover_all(uri: str) -> int:
    from boring_assets.storage.root import open_root
    from partitions.discovery import discover

    return len(discover(open_root(uri), quiet_seconds=3600).shards)


def settings_of(home: Home, **own: Any) -> Settings:
    return Settings(
        input_dir=str(home.input), output_dir=str(home.output), model="boring-tiny", device="cpu",
        quiet_seconds=3600, **own,
    )  # fmt: skip


def register_all(home: Home, per_run: int) -> int:
    from resources.source import ShardSource

    settings = settings_of(home, partitions_per_run=per_run)
    return len(register_shards(home.instance, ShardSource.from_settings(settings).discover(), settings))


def tick(home: Home, per_run: int, cursor: str | None) -> tuple[int, str | None]:
    """One look of the sensor: how many runs it requests, and its cursor."""
    import dagster as dg

    from boring_assets.definitions import build_definitions
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    settings = settings_of(home, partitions_per_run=per_run)
    resources = {
        "source": ShardSource.from_settings(settings),
        "embeddings": EmbeddingsIOManager.from_settings(settings),
    }
    sensor = build_definitions(settings).resolve_sensor_def("new_shards")
    context = dg.build_sensor_context(instance=home.instance, cursor=cursor, resources=resources)
    data = sensor.evaluate_tick(context)
    return len(data.run_requests or ()), data.cursor


def report_done(home: Home, per_run: int, count: int) -> int:
    """Stores a materialization of each shard, as the run of it would; and the embeddings file, empty."""
    import dagster as dg
    from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
    from dagster._core.events.log import EventLogEntry

    from boring_assets.assets.events import materialization
    from boring_assets.datasets import ASSET_KEY
    from boring_assets.definitions import build_definitions
    from resources.source import ShardSource

    settings = settings_of(home, partitions_per_run=per_run)
    job = build_definitions(settings).resolve_job_def("embed_shards")
    facts = {
        "rows": 10_000, "embedded": 9_990, "failed": 10, "failed_by_reason": {"not_downloaded": 10},
        "model": "boring-tiny", "pretrained": "", "weights_digest": "0" * 64, "precision": "fp32",
        "settings": settings.embedding_version(),
    }  # fmt: skip
    more = {"seconds": 12.5, "images_per_second": 800.0, "device": "cuda:0"}
    shards = ShardSource.from_settings(settings).discover().shards[:count]
    for start in range(0, len(shards), per_run):
        run = home.instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS)
        for shard in shards[start : start + per_run]:
            uris = tuple(
                f"{home.output}/image_{kind}/{shard.key}.parquet" for kind in ("embeddings", "failures")
            )
            event = materialization(ASSET_KEY, shard, facts, (uris[0], uris[1]), more)
            entry = EventLogEntry(
                error_info=None, level=20, user_message="", run_id=run.run_id, timestamp=time.time(),
                step_key="image_embeddings", job_name=run.job_name,
                dagster_event=DagsterEvent(
                    DagsterEventType.ASSET_MATERIALIZATION.value, run.job_name, step_key="image_embeddings",
                    event_specific_data=StepMaterializationData(event),
                ),
            )  # fmt: skip
            home.instance.event_log_storage.store_event(entry)
            path = home.output / "image_embeddings" / f"{shard.key}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return len(shards)


def stock(home: Home, per_run: int) -> dict[str, int]:
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    settings = settings_of(home, partitions_per_run=per_run)
    found = ShardSource.from_settings(settings).discover()
    its = get_shard_states(
        home.instance,
        found,
        settings.embedding_version(),
        EmbeddingsIOManager.from_settings(settings).committed,
    )
    return {state.value: count for state, count in its.count().items()}
