"""`boring-assets list-pictures`."""

import click

from boring_assets.commands.options import Command
from boring_assets.wording import some


@click.command(
    "list-pictures",
    cls=Command,
    examples=("boring-assets list-pictures photos", "boring-assets embed photos embeddings"),
)
@click.argument("folder", metavar="DIR", help="Path or URI of the folder; the shards are written to it.")
@click.option(
    "--samples-per-shard",
    default=10_000,
    show_default=True,
    metavar="N",
    type=click.IntRange(1, 1_000_000),
    help="Most images in a shard.",
)
def list_pictures(folder: str, samples_per_shard: int) -> None:
    """List the image files below DIR in parquet shards, which `embed` can read.

    The images are not moved. The shards are pictures-00000.parquet and so on. A later call lists new
    images in new shards. A `.txt` file of the same name is an image's caption.
    """
    from boring_assets.commands.picture_lists import write_lists

    sizes = write_lists(folder, samples_per_shard)
    click.echo(f"{some(sum(sizes), 'new picture')} in {some(len(sizes), 'new list')}.")
