"""`boring-assets cost`. The prices come from a file of the user."""

import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError

from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.errors import SettingsError, StorageError
from boring_assets.settings import Settings
from boring_assets.wording import expected

_FILE = click.Path(dir_okay=False, path_type=Path)
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


@click.command(
    cls=Command,
    examples=(
        "boring-assets cost 1000000000 --prices prices.toml --images-per-second 2523 --dim 768",
        "boring-assets cost 1000000000 --prices prices.toml --output s3://bucket/embeddings --machines 8",
    ),
)
@click.argument("images", type=click.IntRange(1), help="Number of images.")
@click.option("--prices", type=_FILE, required=True, help="TOML file with prices; docs/scale.md has one.")
@folder("output_dir", required=False)
@click.option("--benchmark", type=_FILE, help="File that `python -m benchmarks.gpu --out FILE` wrote.")
@click.option("--images-per-second", type=click.FloatRange(0, min_open=True), help="Speed of one device.")
@setting("model", help="Model to take from the benchmark.")
@click.option("--dim", type=click.IntRange(1), help="Length of an embedding, without --output.")
@click.option("--machines", type=click.IntRange(1), default=1, help="Number of machines; 1 by default.")
@click.option("--images-per-shard", type=click.IntRange(1), default=10_000, help="10,000 by default.")
@config
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cost(images: int, prices: Path, images_per_shard: int, as_json: bool, **options: Any) -> None:
    """Estimate the hours, the cost and the storage of embedding IMAGES images.

    You give the prices (--prices). The speed is that of an output that was embedded with this DAGSTER_HOME
    (--output), of the GPU benchmark (--benchmark), or given (--images-per-second).
    """
    machines, rates = options.pop("machines"), _read_prices(prices)
    speed = _measure(**options)
    shards = math.ceil(images / images_per_shard)
    requests = {"list": math.ceil(3 * shards / _LISTED) + math.ceil(shards / _LISTED)}
    requests |= {kind: count * shards for kind, count in _PER_SHARD.items()}
    paid = {kind: getattr(rates.storage, f"{kind}_per_1000") for kind in requests}
    sums = [requests[kind] / 1000 * price for kind, price in paid.items() if price is not None]
    sizes = {
        kind: images * (speed["dim"] * width + speed["other_bytes"]) for kind, width in _WIDTHS.items()
    } if speed["dim"] else {}  # fmt: skip
    month = rates.storage.price_per_gb_month
    answer = {
        "images": images,
        "shards": shards,
        "machines": [_estimate(one, images, speed["images_per_second"], machines) for one in rates.machine],
        "output_bytes": sizes,
        "storage_per_month": {} if month is None else {kind: sizes[kind] / 1e9 * month for kind in sizes},
        "requests": requests,
        "request_cost": sum(sums) if sums else None,
        "currency": rates.currency,
        "measured": speed,
    }
    click.echo(json.dumps(answer)) if as_json else _print(answer)


def _estimate(machine: _Machine, images: int, of_device: float | None, count: int) -> dict[str, Any]:
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


def _measure(benchmark: Path | None, images_per_second: float | None, dim: int | None, **options: Any) -> Any:
    """Returns images per second of one device, length and other bytes of an embedding, and their source."""
    settings, source = apply(options), "as given"
    if sum(map(bool, (options["output_dir"], benchmark, images_per_second))) > 1:
        raise SettingsError("--output, --benchmark and --images-per-second all give the speed. Give one.")
    if options["output_dir"]:
        return _measure_output(settings)
    if benchmark:
        try:
            rows = json.loads(benchmark.read_text())["rows"]
            rates = {
                row["model"]: float(row["end_to_end"]["steady"]) for row in rows if row.get("end_to_end")
            }
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SettingsError(
                f"{benchmark} is not a file of `python -m benchmarks.gpu --out`: {error!r}."
            ) from error
        if settings.model not in rates:
            raise SettingsError(f"{benchmark} has no model {settings.model}. It has {', '.join(rates)}.")
        images_per_second, source = rates[settings.model], f"{benchmark}, {settings.model}"
    return {"images_per_second": images_per_second, "dim": dim, "other_bytes": 0.0, "source": source}


def _measure_output(settings: Settings) -> dict[str, Any]:
    from boring_assets.output.files import EMBEDDINGS
    from boring_assets.storage.errors import storage_error
    from resources.embeddings_io import EmbeddingsIOManager

    root = EmbeddingsIOManager.from_settings(settings).root()
    try:
        totals = json.loads(root.fs.cat_file(f"{root.path}/metadata.json"))
        files = root.fs.find(f"{root.path}/{EMBEDDINGS}", detail=True).values()
    except Exception as error:
        raise storage_error(error, f"{root.uri}/metadata.json", "read") from error
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
    from boring_assets.datasets import materializations
    from boring_assets.instance.homes import open_instance
    from boring_assets.parts import get_parts

    instance, rows = open_instance(settings.output_dir), Counter[str]()
    for part in get_parts(settings):
        for record in materializations(instance, part.embeddings):
            metadata: Any = record.asset_materialization and record.asset_materialization.metadata
            if "seconds" in metadata and "adopted" not in metadata:
                rows[record.run_id] += metadata["rows"].value
    ended: list[Any] = [run for run in map(instance.get_run_record_by_id, rows) if run and run.end_time]
    seconds = sum(run.end_time - run.start_time for run in ended)
    return sum(rows[run.dagster_run.run_id] for run in ended) / seconds if seconds else None


def _print(answer: dict[str, Any]) -> None:
    currency, month = answer["currency"], answer["storage_per_month"]
    click.echo(f"{answer['images']:,} images in {answer['shards']:,} shards ({answer['measured']['source']})")
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
