"""`boring-assets export`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder
from boring_assets.wording import some


@click.command(
    cls=Command,
    examples=(
        "boring-assets export s3://bucket/embeddings ./for-clip-retrieval --format clip-retrieval",
        "boring-assets export embeddings dogs --format hf --where \"aesthetic > 5 AND animal = 'dog'\"",
        "boring-assets export embeddings shards --format webdataset --input photos --no-near-duplicates",
    ),
)
@click.argument("output", help="Path or URI of the output that `embed` wrote.")
@click.argument("dest", help="Path or URI of an empty folder. `export.json` is written last.")
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(["clip-retrieval", "npy", "npz", "lance", "hf", "webdataset"]),
    help="Format to write. `webdataset` writes the images too, and needs --input.",
)
@click.option("--where", metavar="SQL", default="", help="Export only these rows, e.g. 'meta_width >= 512'.")
@click.option(
    "--no-near-duplicates",
    is_flag=True,
    help="Export only one image of each group in near_duplicates.parquet.",
)
@folder("input_dir", required=False)
@config
def export(output: str, dest: str, layout: str, where: str, no_near_duplicates: bool, **options: Any) -> None:
    """Write the embeddings of OUTPUT to DEST in another tool's format."""
    from boring_assets.commands.exporting import export_all

    settings = apply(options)
    facts = export_all(
        output, dest, layout, where=where, no_near_duplicates=no_near_duplicates, settings=settings
    )
    click.echo(f"{some(facts['rows'], 'embedding')} of {some(facts['partitions'], 'shard')} in {dest}.")
    for reason, count in facts.get("left_out", {}).items():
        click.secho(f"Left out  {some(count, 'image')} that cannot be read: {reason}", fg="yellow", err=True)
