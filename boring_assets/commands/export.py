"""`boring-assets export`."""

import click

from boring_assets.commands.options import Command
from boring_assets.wording import some


@click.command(
    cls=Command,
    examples=(
        "boring-assets export s3://bucket/embeddings ./for-clip-retrieval --format clip-retrieval",
        "boring-assets export embeddings embeddings-npy --format npy",
    ),
)
@click.argument("output", help="Path or URI of the output that `embed` wrote.")
@click.argument("dest", help="Path or URI of an empty folder. `export.json` is written last.")
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(["clip-retrieval", "npy", "npz", "lance", "hf"]),
    help="Format to write.",
)
def export(output: str, dest: str, layout: str) -> None:
    """Write the embeddings of OUTPUT to DEST in another tool's format."""
    from boring_assets.commands.exporting import export_all

    facts = export_all(output, dest, layout)
    click.echo(f"{some(facts['rows'], 'embedding')} of {some(facts['partitions'], 'shard')} in {dest}.")
