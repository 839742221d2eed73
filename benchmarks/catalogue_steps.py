"""The steps of `benchmarks.catalogue`; those with a `Home` run in their own process."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.datasets import UNNAMED, Dataset
from boring_assets.engine.samples import Shard
from boring_assets.parts import get_parts, register_shards
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
    """Writes the same objects with boto3, many at once; s3fs is slower."""
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


def register_all(home: Home, settings: Settings) -> int:
    from resources.source import ShardSource

    return len(register_shards(home.instance, ShardSource.from_settings(settings).discover(), settings))


def tick(home: Home, settings: Settings, cursor: str | None = None) -> tuple[int, str]:
    """Evaluates the sensor once; returns how many runs it requests, and its cursor."""
    import dagster as dg

    from boring_assets.definitions import build_definitions
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    resources = {
        "source": ShardSource.from_settings(settings),
        "embeddings": EmbeddingsIOManager.from_settings(settings),
    }
    sensor = build_definitions(settings).resolve_sensor_def("new_shards")
    context = dg.build_sensor_context(instance=home.instance, cursor=cursor, resources=resources)
    data = sensor.evaluate_tick(context)
    return len(data.run_requests or ()), data.cursor or ""


def store_event(home: Home, settings: Settings, part: Dataset, run: Any, shard: Shard) -> None:
    """Stores the materialization of a shard, as a run does."""
    from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
    from dagster._core.events.log import EventLogEntry

    from boring_assets.assets.events import materialization
    from resources.embeddings_io import EmbeddingsIOManager

    facts = {
        "rows": 10_000, "embedded": 9_990, "failed": 10, "failed_by_reason": {"not_downloaded": 10},
        "model": "boring-tiny", "pretrained": "", "weights_digest": "0" * 64, "precision": "fp32",
        "settings": settings.embedding_version(),
    }  # fmt: skip
    more = {"seconds": 12.5, "images_per_second": 800.0, "device": "cuda:0"}
    output = EmbeddingsIOManager(output_dir=str(home.output))
    event = materialization(part, output, shard, facts, more)
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


def store_events(home: Home, settings: Settings, count: int) -> int:
    """Stores a materialization of each shard, and an empty embeddings file."""
    import dagster as dg

    from boring_assets.definitions import build_definitions
    from resources.source import ShardSource

    job = build_definitions(settings).resolve_job_def("embed_shards")
    shards = ShardSource.from_settings(settings).discover().shards[:count]
    for start in range(0, len(shards), settings.partitions_per_run):
        run = home.instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS)
        for shard in shards[start : start + settings.partitions_per_run]:
            store_event(home, settings, UNNAMED, run, shard)
            path = home.output / "image_embeddings" / f"{shard.key}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return len(shards)


def count_states(home: Home, settings: Settings) -> dict[str, int]:
    """Counts the shards in each state."""
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    found = ShardSource.from_settings(settings).discover()
    committed = EmbeddingsIOManager.from_settings(settings).committed
    parts = get_parts(settings)
    states = get_shard_states(home.instance, found, settings.embedding_version(), committed, parts)
    return {state.value: count for state, count in states.count().items()}
