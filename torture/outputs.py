"""Reads and compares outputs on a local disk or on S3: their files, versions and rows."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from boring_assets.datasets import ASSET_KEY
from boring_assets.sample_data import write_sample_data
from boring_assets.settings import Settings
from boring_assets.shard_states import State, get_shard_states
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource
from torture.starter import Run, Starter

PROGRAM = str(Path(sys.executable).parent / "boring-assets")
EMBEDDINGS, FAILURES = "image_embeddings", "image_failures"
OWN_NOTES = ("metadata.json", ".boring_assets.json", ".counts/")
FIXED = {
    "BORING_MODEL": "boring-tiny",
    "BORING_DEVICE": "cpu",
    "BORING_PRECISION": "fp32",
    "BORING_QUIET_SECONDS": "0",
    # With batches of one image, the rows of two runs are equal to the bit.
    "BORING_BATCH_SIZE": "1",
}


def write_input(folder: Path, shards: int, images: int) -> list[str]:
    """Writes shards of two layouts with some broken images; returns their partition keys."""
    layouts: tuple[Literal["webdataset", "parquet"], ...] = ("webdataset", "parquet")
    for number, layout in enumerate(layouts):
        count = shards // 2 + (shards % 2 if number == 0 else 0)
        write_sample_data(folder / layout, count, images, layout, broken=2, image_size=64, seed=number)
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.parquet"))


@dataclass
class Place:
    """An input, an output and their own Dagster home.

    Attributes:
        home: `DAGSTER_HOME`.
        input, output: Path or URI.
        fs: Filesystem of the output, with its own connection.
        path: Path of the output on it.
        env: Further environment variables of `boring-assets`.
    """

    home: Path
    input: str
    output: str
    fs: fsspec.AbstractFileSystem
    path: str
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, starter: Starter | None = None, **more: str) -> "Run | subprocess.Popen[bytes]":
        """Starts `boring-assets embed` in its own session; without a starter, as a new process."""
        self.home.parent.mkdir(parents=True, exist_ok=True)
        log = self.home.parent / "log.txt"
        env = {**_clean(os.environ), **FIXED, **self.env, **more, "DAGSTER_HOME": str(self.home)}
        arguments = ["embed", self.input, self.output]
        if starter:
            return starter.start(arguments, env, str(log))
        with log.open("ab") as sink:
            return subprocess.Popen(
                [PROGRAM, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip

    def log(self) -> str:
        """Returns the end of the program's output."""
        return (self.home.parent / "log.txt").read_text(errors="replace")[-2000:]

    def files(self) -> dict[str, str]:
        """Returns every file of the output, hidden ones too, with a stamp that changes with the file."""
        self.fs.invalidate_cache()
        found = self.fs.find(self.path, detail=True) if self.fs.exists(self.path) else {}
        return {
            path.removeprefix(f"{self.path}/"): str(
                (info.get("ino"), info.get("mtime"), info.get("ETag"), info.get("LastModified"))
            )
            for path, info in found.items()
            if info["type"] == "file"
        }

    def table(self, path: str) -> pa.Table:
        """Returns the rows of a file."""
        return pq.read_table(io.BytesIO(self.fs.cat_file(f"{self.path}/{path}")))

    def tables(self, keys: list[str]) -> dict[str, pa.Table]:
        """Returns the rows of both files of each partition."""
        return {path: self.table(path) for path in expected(keys)}

    def totals(self) -> dict[str, Any]:
        """Returns `metadata.json` without its time."""
        totals = json.loads(self.fs.cat_file(f"{self.path}/metadata.json"))
        return {name: value for name, value in totals.items() if name != "timestamp"}

    def states(self) -> dict[str, State]:
        """Returns the state of each partition, as `boring-assets status` shows it."""
        with self._settings() as settings, self._instance() as instance:
            found = ShardSource.from_settings(settings).discover()
            committed = EmbeddingsIOManager.from_settings(settings).committed
            return get_shard_states(instance, found, settings.embedding_version(), committed).states

    def computed(self) -> dict[str, int]:
        """Returns how often each partition was reported as embedded, without adoptions."""
        times: dict[str, int] = {}
        with self._instance() as instance:
            for record in instance.fetch_materializations(ASSET_KEY, limit=10_000).records:
                event = record.asset_materialization
                if event and "adopted" not in event.metadata:
                    times[str(event.partition)] = times.get(str(event.partition), 0) + 1
        return times

    @contextmanager
    def _settings(self) -> Iterator[Settings]:
        before = dict(os.environ)
        os.environ.update({**FIXED, **self.env})
        try:
            yield Settings(input_dir=self.input, output_dir=self.output)
        finally:
            os.environ.clear()
            os.environ.update(before)

    @contextmanager
    def _instance(self) -> Iterator[dg.DagsterInstance]:
        before = os.environ.get("DAGSTER_HOME")
        os.environ["DAGSTER_HOME"] = str(self.home)
        try:
            with dg.DagsterInstance.from_config(str(self.home)) as instance:
                yield instance
        finally:
            os.environ.pop("DAGSTER_HOME") if before is None else os.environ.update(DAGSTER_HOME=before)

    def remove(self) -> None:
        """Deletes the output and the home."""
        if self.fs.exists(self.path):
            self.fs.rm(self.path, recursive=True)
        shutil.rmtree(self.home.parent, ignore_errors=True)


def expected(keys: list[str]) -> set[str]:
    """Returns the paths of the files of some partitions."""
    return {f"{kind}/{key}.parquet" for kind in (EMBEDDINGS, FAILURES) for key in keys}


def compare(place: Place, keys: list[str], tables: Mapping[str, pa.Table], totals: object) -> list[str]:
    """Returns the differences from the output of an undisturbed run."""
    there = set(place.files())
    wrong = [f"{path} is missing" for path in sorted((expected(keys) | {"metadata.json"}) - there)]
    wrong += [
        f"{path} is a stray file" for path in sorted(there - expected(keys)) if not path.startswith(OWN_NOTES)
    ]
    wrong += [
        f"{path} has other rows"
        for path in expected(keys) & there
        if not place.table(path).equals(tables[path])
    ]
    if "metadata.json" in there and place.totals() != totals:
        wrong.append(f"metadata.json says {place.totals()}, but should say {totals}")
    return wrong


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without settings and credentials of this machine."""
    foreign = ("BORING_", "DAGSTER_", "AWS_", "FSSPEC_")
    return {name: value for name, value in environment.items() if not name.startswith(foreign)}
