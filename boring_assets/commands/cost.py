"""`boring-assets cost`: a table of hours, sums and sizes for so many images."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from boring_assets.commands.options import apply, config, setting
from boring_assets.errors import SettingsError

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("cost")
@click.argument("images", type=click.IntRange(1))
@click.option("--prices", required=True, type=_FILE, help="TOML file with the prices; docs/scale.md has one.")
@setting("output_dir", "--output")
@click.option("--benchmark", type=_FILE, help="What `python -m benchmarks.gpu --out FILE` wrote.")
@click.option(
    "--images-per-second", type=click.FloatRange(0, min_open=True), help="Of one device, where you know it."
)
@setting("model")
@click.option("--dim", type=click.IntRange(1), help="Length of an embedding, where no output says so.")
@click.option("--machines", default=1, type=click.IntRange(1), help="Machines that work at once.")
@click.option("--images-per-shard", default=10_000, type=click.IntRange(1), help="img2dataset's default.")
@config
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cost(images: int, as_json: bool, **options: Any) -> None:
    """Says what IMAGES images cost in hours, money, storage.

    Prices are yours (--prices). How fast the work goes is measured: by an output that was made here
    (--output, with its DAGSTER_HOME), by the GPU benchmark (--benchmark), or given (--images-per-second).
    The bytes of an image are those of the output, or follow from --dim.
    """
    from boring_assets.commands import costing
    from boring_assets.commands.prices import read_prices

    prices = read_prices(options.pop("prices"))
    machines, per_shard = options.pop("machines"), options.pop("images_per_shard")
    measured = _measure(**options)
    found = costing.estimate(images, prices, measured, machines, per_shard)
    if as_json:
        click.echo(costing.as_json(found, prices, measured))
    else:
        _show(Console(highlight=False), found, prices.currency, measured.source, machines)


def _measure(
    benchmark: Path | None, images_per_second: float | None, dim: int | None, **settings: Any
) -> Any:
    from boring_assets.commands import costing
    from boring_assets.instance.homes import open_instance

    values = apply(settings)
    if sum((bool(settings["output_dir"]), bool(benchmark), bool(images_per_second))) > 1:
        raise SettingsError(
            "--output, --benchmark and --images-per-second each say how fast the work goes. Give one of them."
        )
    if settings["output_dir"]:
        return costing.measure_output(values, open_instance(values.output_dir))
    if benchmark:
        found = costing.read_benchmark(benchmark, values.model)
        return costing.Measured(found.images_per_second, dim, source=found.source)
    return costing.Measured(images_per_second, dim, source="as given")


def _show(console: Console, found: Any, currency: str, source: str, machines: int) -> None:
    table = Table(
        title=f"{found.images:,} images in {found.shards:,} shards ({source})", title_justify="left"
    )
    table.add_column("Machine")
    for name in ("Images/s", "GPU hours", f"Hours, {machines} of them", "Cost", "Cost of 1 M images"):
        table.add_column(name, justify="right")
    for one in found.machines:
        table.add_row(
            one.name,
            f"{one.images_per_second:,.0f}",
            f"{one.gpu_hours:,.1f}",
            f"{one.wall_hours:,.1f}",
            f"{one.cost:,.2f} {currency}".strip(),
            f"{one.cost_per_million_images:,.4f} {currency}".strip(),
        )
    console.print(table)
    for kind, size in found.output_bytes.items():
        month = found.storage_per_month.get(kind)
        price = "" if month is None else f", {month:,.2f} {currency}".rstrip() + " a month"
        console.print(f"Output as {kind}: {size / 1e9:,.1f} GB{price}")
    asked = ", ".join(f"{count:,} {kind.upper()}" for kind, count in found.requests.items())
    price = "" if found.request_cost is None else f": {found.request_cost:,.2f} {currency}".rstrip()
    console.print(f"Requests to the object storage, at least: {asked}{price}")
