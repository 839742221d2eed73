"""What embedding so many images takes and costs: measured throughput, times the prices that somebody gives.

The project knows no prices: they differ by place and day. Every figure is a product of what was measured, or
given, and what the price file says.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from boring_assets.commands.prices import Machine, Prices
from boring_assets.datasets import Dataset
from boring_assets.errors import SettingsError, StorageError
from boring_assets.settings import Settings

PUTS_PER_SHARD = 2
"""The failures file and the embeddings file."""
GETS_PER_SHARD = 7
"""What docs/performance.md counts for a small shard. A tar is read in 8 MiB: each of these is one more."""
_PAGE = 1000  # objects that S3 answers to one listing
_BYTES = {"float16": 2, "float32": 4}
_GB = 10**9


@dataclass(frozen=True)
class Measured:
    """What is known of the work.

    Attributes:
        images_per_second: Of one device, its runs' start-up included; None where nobody measured it.
        dim: Length of an embedding; None where unknown.
        other_bytes: Of an embedded image in the output, besides its vector; 0 where unknown.
        source: Where this is from, for people.
    """

    images_per_second: float | None = None
    dim: int | None = None
    other_bytes: float = 0.0
    source: str = ""


@dataclass(frozen=True)
class MachineCost:
    """What the work takes on one kind of machine."""

    name: str
    images_per_second: float
    gpu_hours: float
    wall_hours: float
    cost: float
    cost_per_million_images: float


@dataclass(frozen=True)
class Estimate:
    """What so many images take. Sums are missing where a price is not given, sizes where no dim is known.

    Attributes:
        machines: One for each kind of machine.
        output_bytes: Size of the output by type of the embeddings.
        storage_per_month: Its price, by type.
        requests: How many of each kind the object storage is asked, discovery once.
        request_cost: Their price.
    """

    images: int
    shards: int
    machines: list[MachineCost]
    output_bytes: dict[str, float]
    storage_per_month: dict[str, float]
    requests: dict[str, int]
    request_cost: float | None


def measure_output(settings: Settings, instance: dg.DagsterInstance) -> Measured:
    """What an output that was made here says: its runs' images a second, and its bytes an image.

    Args:
        settings: The output, and its dataset.
        instance: Dagster's, which has the record of the runs that made it.

    Returns:
        Rate of one device (each run has one), dim and bytes.

    Raises:
        StorageError: The output cannot be read, or has nothing in it.
    """
    from boring_assets.output.files import EMBEDDINGS
    from boring_assets.storage.errors import storage_error
    from resources.embeddings_io import EmbeddingsIOManager

    root = EmbeddingsIOManager.from_settings(settings).root()
    try:
        totals = json.loads(root.fs.cat_file(f"{root.path}/metadata.json"))
        files = root.fs.find(f"{root.path}/{EMBEDDINGS}", detail=True).values()
    except Exception as error:
        raise storage_error(error, f"{root.uri}/metadata.json", "read") from error
    if not totals["num_samples"] or not isinstance(totals["dim"], int) or totals["dtype"] not in _BYTES:
        raise StorageError(
            f"{root.uri} has no embeddings, or of several models. Give an output of one model."
        )
    size = sum(file["size"] for file in files if file["name"].endswith(".parquet"))
    return Measured(
        images_per_second=_rate(instance, Dataset.from_settings(settings).embeddings),
        dim=totals["dim"],
        other_bytes=max(0.0, size / totals["num_samples"] - totals["dim"] * _BYTES[totals["dtype"]]),
        source=f"{root.uri}, by {totals['model']}",
    )


def _rate(instance: dg.DagsterInstance, asset: dg.AssetKey) -> float | None:
    """Rows a second of all runs that made something; None where Dagster knows of no such run."""
    rows: dict[str, int] = {}
    cursor = None
    while True:
        page = instance.fetch_materializations(asset, limit=1000, cursor=cursor)
        for record in page.records:
            made = record.asset_materialization
            if made and "seconds" in made.metadata:  # the others were taken over from an earlier run
                count: Any = made.metadata["rows"].value
                rows[record.run_id] = rows.get(record.run_id, 0) + count
        if not page.has_more:
            break
        cursor = page.cursor
    seconds, done = 0.0, 0
    for run_id, count in rows.items():
        run = instance.get_run_record_by_id(run_id)
        if run and run.start_time and run.end_time:
            seconds, done = seconds + run.end_time - run.start_time, done + count
    return done / seconds if seconds else None


def read_benchmark(file: Path, model: str) -> Measured:
    """What `python -m benchmarks.gpu --out FILE` measured.

    Args:
        file: The file that it wrote.
        model: Which of its models.

    Returns:
        Steady images a second, end to end, of one device.

    Raises:
        SettingsError: It cannot be read, is something else, or has no such model.
    """
    try:
        rows = json.loads(file.read_text())["rows"]
        rates = {row["model"]: float(row["end_to_end"]["steady"]) for row in rows if "end_to_end" in row}
    except OSError as error:
        raise SettingsError(f"The benchmark file {file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"The benchmark file {file} is not what `python -m benchmarks.gpu --out FILE` writes "
            f"({error!r}). Run that, or give --images-per-second."
        ) from error
    if model not in rates:
        raise SettingsError(
            f"{file} has no model {model}. It has {', '.join(rates) or 'none'}: give --model."
        )
    return Measured(images_per_second=rates[model], source=f"{file}, {model}")


def estimate(images: int, prices: Prices, measured: Measured, machines: int, per_shard: int) -> Estimate:
    """Multiplies it out.

    Args:
        images: How many.
        prices: What things cost.
        measured: How fast the work goes, and how large its output is.
        machines: How many machines of a kind work at once.
        per_shard: Images in a shard.

    Returns:
        Hours, sums, sizes and requests.

    Raises:
        SettingsError: Neither the price file nor a measurement says how fast a machine is.
    """
    shards = math.ceil(images / per_shard)
    requests = {
        "list": math.ceil(3 * shards / _PAGE) + math.ceil(shards / _PAGE),
        "get": GETS_PER_SHARD * shards,
        "put": PUTS_PER_SHARD * shards,
    }
    asked = prices.storage
    each = {"list": asked.list_per_1000, "get": asked.get_per_1000, "put": asked.put_per_1000}
    known = [count / 1000 * price for kind, count in requests.items() if (price := each[kind]) is not None]
    sizes = {
        kind: images * (measured.dim * width + measured.other_bytes)
        for kind, width in _BYTES.items()
        if measured.dim is not None
    }
    month = asked.price_per_gb_month
    return Estimate(
        images=images,
        shards=shards,
        machines=[_machine(one, images, measured, machines) for one in prices.machine],
        output_bytes=sizes,
        storage_per_month={} if month is None else {kind: size / _GB * month for kind, size in sizes.items()},
        requests=requests,
        request_cost=sum(known) if known else None,
    )


def _machine(machine: Machine, images: int, measured: Measured, machines: int) -> MachineCost:
    rate = machine.images_per_second
    if rate is None and measured.images_per_second is not None:
        rate = measured.images_per_second * machine.gpus
    if rate is None:
        raise SettingsError(
            f"How fast the machine {machine.name} is, is not known. Give --images-per-second, --output or "
            "--benchmark, or images_per_second with the machine in the price file."
        )
    hours = images / rate / 3600
    return MachineCost(
        name=machine.name,
        images_per_second=rate,
        gpu_hours=hours * machine.gpus,
        wall_hours=hours / machines,
        cost=hours * machine.price_per_hour,
        cost_per_million_images=1e6 / rate / 3600 * machine.price_per_hour,
    )


def as_json(found: Estimate, prices: Prices, measured: Measured) -> str:
    """The estimate with what it was made from, as one JSON object."""
    return json.dumps({**asdict(found), "currency": prices.currency, "measured": asdict(measured)})
