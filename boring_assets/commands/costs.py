"""For `boring-assets cost`. The prices come from a file of the user."""

import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError

from boring_assets.datasets import materializations
from boring_assets.errors import SettingsError, StorageError
from boring_assets.instance.homes import open_instance
from boring_assets.parts import get_parts
from boring_assets.settings import Settings
from boring_assets.storage.errors import storage_errors
from boring_assets.wording import expected, plain, some
from partitions.own_files import EMBEDDINGS
from resources.embeddings_io import EmbeddingsIOManager

_WIDTHS = {"float16": 2, "float32": 4}
_LISTED = 1000  # objects in one answer to a listing of S3
_PER_SHARD = {"get": 7, "put": 2}  # docs/performance.md; a tar needs one more to read for each 8 MiB
_Price = Annotated[float, Field(ge=0)]


class _Machine(BaseModel, extra="forbid"):
    name: str = Field(min_length=1)
    price_per_hour: _Price
    gpus: PositiveInt = 1
    images_per_second: PositiveFloat | None = None


class _Storage(BaseModel, extra="forbid"):
    price_per_gb_month: _Price | None = None  # a GB is 10^9 bytes
    put_per_1000: _Price | None = None
    get_per_1000: _Price | None = None
    list_per_1000: _Price | None = None


class _Prices(BaseModel, extra="forbid"):
    currency: str = ""
    machine: list[_Machine] = Field(min_length=1)
    storage: _Storage = _Storage()


def estimate(
    images: int,
    prices: Path,
    settings: Settings,
    *,
    output: bool,
    benchmark: Path | None,
    images_per_second: float | None,
    dim: int | None,
    machines: int,
    images_per_shard: int,
) -> dict[str, Any]:
    """Returns what `boring-assets cost --json` prints; the arguments are those of the command.

    Raises:
        SettingsError: A file is wrong, or the speed is not known or given twice.
        StorageError: The output cannot be read, or has no embeddings of one model.
    """
    rates = _read_prices(prices)
    if sum(map(bool, (output, benchmark, images_per_second))) > 1:
        raise SettingsError("--output, --benchmark and --images-per-second all give the speed. Give one.")
    if output:
        speed = _measure_output(settings)
    else:
        source = "as given"
        if benchmark:
            images_per_second, source = _read_benchmark(benchmark, settings.model)
        speed = {"images_per_second": images_per_second, "dim": dim, "other_bytes": 0.0, "source": source}
    shards = math.ceil(images / images_per_shard)
    requests = {"list": math.ceil(3 * shards / _LISTED) + math.ceil(shards / _LISTED)}
    requests |= {kind: count * shards for kind, count in _PER_SHARD.items()}
    paid = {kind: getattr(rates.storage, f"{kind}_per_1000") for kind in requests}
    sums = [requests[kind] / 1000 * price for kind, price in paid.items() if price is not None]
    sizes = {
        kind: images * (speed["dim"] * width + speed["other_bytes"]) for kind, width in _WIDTHS.items()
    } if speed["dim"] else {}  # fmt: skip
    month = rates.storage.price_per_gb_month
    return {
        "images": images,
        "shards": shards,
        "machines": [_of_machine(one, images, speed["images_per_second"], machines) for one in rates.machine],
        "output_bytes": sizes,
        "storage_per_month": {} if month is None else {kind: sizes[kind] / 1e9 * month for kind in sizes},
        "requests": requests,
        "request_cost": sum(sums) if sums else None,
        "currency": rates.currency,
        "measured": speed,
    }


def _of_machine(machine: _Machine, images: int, of_device: float | None, count: int) -> dict[str, Any]:
    rate = machine.images_per_second or (of_device or 0) * machine.gpus
    if not rate:
        raise SettingsError(
            f"The speed of the machine {machine.name} is not known. Give --images-per-second, --output or "
            "--benchmark, or images_per_second of the machine in the price file."
        )
    hours = images / rate / 3600
    price = hours * machine.price_per_hour
    return {
        "name": machine.name,
        "images_per_second": rate,
        "gpu_hours": hours * machine.gpus,
        "wall_hours": hours / count,
        "cost": price,
        "cost_per_million_images": price / images * 1e6,
    }


def _read_prices(file: Path) -> _Prices:
    try:
        return _Prices.model_validate(tomllib.loads(file.read_text()))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {expected(one)}" for one in error.errors())
        raise SettingsError(f"{file} is wrong: {wrong}. docs/scale.md shows what is expected.") from error
    except ValueError as error:
        raise SettingsError(f"{file} cannot be parsed as toml: {error}.") from error


def _read_benchmark(file: Path, model: str) -> tuple[float, str]:
    """Returns images per second of one device, and where that is from."""
    try:
        rows = json.loads(file.read_text())["rows"]
        rates = {row["model"]: float(row["end_to_end"]["steady"]) for row in rows if row.get("end_to_end")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{file} is not a file of `python -m benchmarks.gpu --out`: {error!r}."
        ) from error
    if model not in rates:
        raise SettingsError(f"{file} has no model {model}. It has {', '.join(rates)}.")
    return rates[model], f"{file}, {model}"


def _measure_output(settings: Settings) -> dict[str, Any]:
    """Returns images per second of one device, length and other bytes of an embedding, and their source."""
    root = EmbeddingsIOManager.from_settings(settings).root()
    with storage_errors(f"{root.uri}/metadata.json", "read"):
        totals = json.loads(root.fs.cat_file(f"{root.path}/metadata.json"))
        files = root.fs.find(f"{root.path}/{EMBEDDINGS}", detail=True).values()
    count, dim, width = totals["num_samples"], totals["dim"], _WIDTHS.get(str(totals["dtype"]))
    if not count or not isinstance(dim, int) or not width:
        raise StorageError(f"{root.uri} has no embeddings, or those of several models. Give another output.")
    size = sum(file["size"] for file in files if file["name"].endswith(".parquet"))
    return {
        "images_per_second": _rate(settings),
        "dim": dim,
        "other_bytes": max(0.0, size / count - dim * width),
        "source": f"{root.uri}, by {totals['model']}",
    }


def _rate(settings: Settings) -> float | None:
    """Returns rows per second of all runs that embedded something, start-up included; None without runs."""
    instance, rows = open_instance(settings.output_dir), Counter[str]()
    for part in get_parts(settings):
        for record, metadata in materializations(instance, part.embeddings):
            if "seconds" in metadata and "adopted" not in metadata:
                rows[record.run_id] += metadata["rows"]
    ended: list[Any] = [run for run in map(instance.get_run_record_by_id, rows) if run and run.end_time]
    seconds = sum(run.end_time - run.start_time for run in ended)
    return sum(rows[run.dagster_run.run_id] for run in ended) / seconds if seconds else None


def print_estimate(answer: dict[str, Any]) -> None:
    """Prints the answer of `estimate` as text."""
    currency, month = answer["currency"], answer["storage_per_month"]
    source = plain(answer["measured"]["source"])
    images, shards = some(answer["images"], "image"), some(answer["shards"], "shard")
    click.echo(f"{images} in {shards} ({source})")
    line = (
        "{name}: {images_per_second:,.0f} images/s, {gpu_hours:,.1f} GPU hours, {wall_hours:,.1f} hours, "
        "{cost:,.2f} {currency}, {cost_per_million_images:,.4f} {currency} a million images"
    )
    for one in answer["machines"]:
        click.echo(line.format(**one, currency=currency))
    for kind, size in answer["output_bytes"].items():
        price = f", {month[kind]:,.2f} {currency} a month" if kind in month else ""
        click.echo(f"Output as {kind}: {size / 1e9:,.1f} GB{price}")
    requests = ", ".join(f"{count:,} {kind.upper()}" for kind, count in answer["requests"].items())
    price = "" if answer["request_cost"] is None else f": {answer['request_cost']:,.2f} {currency}"
    click.echo(f"Requests to the object storage, at least: {requests}{price}")
