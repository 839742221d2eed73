"""`boring-assets failures`."""

import json
from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder
from boring_assets.engine.samples import Reason
from boring_assets.wording import plain


@click.command(
    cls=Command,
    examples=(
        "boring-assets failures s3://bucket/embeddings",
        "boring-assets failures embeddings --reason decode_error --shard 00001 --json",
    ),
)
@folder("output_dir")
@config
@click.option("--shard", metavar="KEY", help="Only this shard, e.g. 00000.")
@click.option("--reason", type=click.Choice([reason.value for reason in Reason]), help="Only this reason.")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    metavar="N",
    type=click.IntRange(0),
    help="Most rows shown; 0 is all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row.")
def failures(shard: str | None, reason: str | None, limit: int, as_json: bool, **options: Any) -> None:
    """Show which samples of OUTPUT were not embedded, and why."""
    import polars as pl

    from boring_assets.output.files import FAILURES
    from resources.embeddings_io import EmbeddingsIOManager

    rows = EmbeddingsIOManager.from_settings(apply(options)).scan(shard, FAILURES)
    if reason:
        rows = rows.filter(pl.col("reason") == reason)
    table = rows.collect()
    shown = table.head(limit) if limit else table
    if as_json:
        for row in shown.iter_rows(named=True):
            click.echo(json.dumps(row))
        return
    for name, count in table["reason"].value_counts(sort=True).iter_rows():
        click.echo(f"{count:>8,}  {name}")
    width = max((len(name) for name in shown["reason"]), default=0)
    for row in shown.iter_rows(named=True):
        line = f"{row['key']}  {row['reason']:<{width}}  {row['detail']}  {row['url'] or ''}"
        click.echo(plain(line.rstrip()))
    if len(table) > len(shown):
        click.echo(f"... and {len(table) - len(shown):,} more; --limit 0 shows all.")
    if not len(table):
        click.echo("No failures.")
