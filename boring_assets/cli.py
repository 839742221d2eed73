"""The command line: `boring-assets embed | register | status | failures | sample-data`.

Exit codes: 0 all is done; 1 an error, nothing was changed by it; 2 wrong usage; 3 some shards failed, the
others are committed; 4 (`status`) there is work to do.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from boring_assets.errors import BoringError, SettingsError
from boring_assets.sample_data import EncodeFormat, Layout, write_sample_data
from boring_assets.settings import PREFIX, Settings, load_settings, setting_help

FAILED_SHARDS = 3
WORK_TO_DO = 4


class _Commands(click.Group):
    """Says our own errors in a line; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BoringError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            sys.exit(1)


def _setting(name: str, *flags: str, **extra: Any) -> Callable[..., Any]:
    """An option that stands for a setting: the same name, the same help."""
    flag = flags or (f"--{name.replace('_', '-')}",)
    return click.option(*flag, name, default=None, help=setting_help(name), **extra)


def _apply(options: dict[str, Any]) -> Settings:
    """Puts the options given into the environment, where child processes find them too, and reads all."""
    for name, value in options.items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    return load_settings()


_CODES = "Exit codes: 0 done, 1 error, 2 wrong usage, 3 some shards failed, 4 there is work to do."


@click.group(cls=_Commands, context_settings={"show_default": True}, epilog=_CODES)
@click.version_option(package_name="boring_assets")
def main() -> None:
    """CLIP embeddings of img2dataset image shards, kept up to date by Dagster."""


@main.command()
@click.argument("input_dir", metavar="INPUT")
@click.argument("output_dir", metavar="OUTPUT")
@_setting("model")
@_setting("pretrained")
@_setting("batch_size")
@_setting("num_workers")
@_setting("max_samples")
@_setting("device")
@_setting("precision")
@_setting("quiet_seconds")
@_setting("allowed_url_prefixes")
@click.option("--config", type=click.Path(dir_okay=False), help="TOML file with settings.")
@click.option("--redo", is_flag=True, help="Also embed again what was made by other settings.")
def embed(redo: bool, **options: Any) -> None:
    """Embeds every shard below INPUT that is new or changed, and writes below OUTPUT.

    INPUT and OUTPUT are paths or URIs (s3://bucket/prefix, gs://..., az://...). Each shard is registered as
    a partition and materialized through Dagster; what is done already is left alone.
    """
    from boring_assets.embedding import embed_all

    settings = _apply(options)
    summary = embed_all(settings, redo=redo)
    sys.exit(FAILED_SHARDS if summary.failed_shards else 0)


@main.command()
@_setting("input_dir", "--input")
@_setting("output_dir", "--output")
@_setting("quiet_seconds")
def register(**options: Any) -> None:
    """Registers the input's new shards as partitions, without embedding them."""
    from boring_assets.catalogue import register as register_shards
    from boring_assets.runs import open_instance

    settings = _apply(options)
    found = _source(settings).discover()
    added = register_shards(open_instance(settings.output_dir), found)
    click.echo(f"{len(added)} shards registered, {len(found.shards) - len(added)} were known.")
    for key in found.growing:
        click.echo(f"Still being written: {key}")
    for path, why in found.refused.items():
        click.echo(f"Refused: {path}: {why}")


@main.command()
@_setting("input_dir", "--input")
@_setting("output_dir", "--output")
@_setting("model")
@_setting("pretrained")
@_setting("precision")
@_setting("quiet_seconds")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool, **options: Any) -> None:
    """Says what is done, new, changed, failed or running."""
    from boring_assets.catalogue import PENDING, State, take_stock
    from boring_assets.definitions import build_embeddings
    from boring_assets.runs import open_instance

    settings = _apply(options)
    instance = open_instance(settings.output_dir)
    found = _source(settings).discover()
    stock = take_stock(instance, found, settings.embedding_version(), build_embeddings(settings).committed)
    count = stock.count()
    if as_json:
        click.echo(
            json.dumps({"counts": {state.value: count[state] for state in State}, "shards": stock.states})
        )
    else:
        for state in State:
            if count[state]:
                keys = sorted(key for key, its in stock.states.items() if its is state)
                shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
                click.echo(f"{state.value:>15}  {count[state]:>8}  {shown}")
        if not stock.states:
            click.echo("There are no shards.")
        for path, why in found.refused.items():
            click.echo(f"Refused: {path}: {why}")
    work = sum(count[state] for state in (*PENDING, State.OTHER_SETTINGS, State.GROWING, State.RUNNING))
    sys.exit(WORK_TO_DO if work else 0)


@main.command()
@_setting("output_dir", "--output")
@click.option("--shard", help="Only this partition.")
@click.option("--reason", help="Only this reason, e.g. decode_error.")
@click.option("--limit", default=20, show_default=True, help="Most rows shown; 0 is all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row.")
def failures(shard: str | None, reason: str | None, limit: int, as_json: bool, **options: Any) -> None:
    """Shows the samples that could not be embedded, and why."""
    import polars as pl

    from boring_assets.definitions import build_embeddings
    from resources.embeddings_io import FAILURES

    settings = _apply(options)
    rows = build_embeddings(settings).scan(shard, FAILURES)
    if reason:
        rows = rows.filter(pl.col("reason") == reason)
    table = rows.collect()
    shown = table if limit == 0 else table.head(limit)
    if as_json:
        for row in shown.iter_rows(named=True):
            click.echo(json.dumps(row))
        return
    for name, count in table["reason"].value_counts(sort=True).iter_rows():
        click.echo(f"{count:>8}  {name}")
    for row in shown.iter_rows(named=True):
        click.echo(f"{row['key']}  {row['reason']}  {row['detail']}  {row['url'] or ''}")
    if len(table) > len(shown):
        click.echo(f"... and {len(table) - len(shown)} more; --limit 0 shows all.")
    if not len(table):
        click.echo("No failures.")


@main.command("sample-data")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--num-shards", default=3, type=click.IntRange(1))
@click.option("--samples-per-shard", default=100, type=click.IntRange(1))
@click.option("--format", "layout", default="webdataset", type=click.Choice(get_args(Layout)), help="Layout.")
@click.option("--encode-format", default="jpg", type=click.Choice(get_args(EncodeFormat)))
@click.option("--broken", default=0, type=click.IntRange(0), help="Broken samples in each shard.")
@click.option("--image-size", default=256, type=click.IntRange(8, 4096), help="Pixels of a side.")
@click.option("--seed", default=0, help="Equal seeds give equal bytes.")
@click.option("--first-shard", default=0, type=click.IntRange(0), help="Number of the first shard.")
def sample_data(
    folder: Path, num_shards: int, samples_per_shard: int, broken: int, **options: Any
) -> None:  # fmt: skip
    """Writes shards of generated, captioned pictures to DIR, just as img2dataset writes them."""
    if broken > samples_per_shard:
        raise SettingsError(f"--broken is {broken}, more than --samples-per-shard {samples_per_shard}.")
    paths = write_sample_data(folder, num_shards, samples_per_shard, broken=broken, **options)
    click.echo(f"{len(paths)} shards of {samples_per_shard} samples in {folder}, {broken} broken in each.")


def _source(settings: Settings) -> Any:
    from boring_assets.definitions import build_source

    return build_source(settings)


if __name__ == "__main__":
    main()
