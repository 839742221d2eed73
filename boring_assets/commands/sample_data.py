"""`boring-assets sample-data`."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from boring_assets.commands.options import Command
from boring_assets.errors import SettingsError, StorageError
from boring_assets.wording import some

_option = partial(click.option, show_default=True)


@click.command(
    "sample-data",
    cls=Command,
    examples=(
        "boring-assets sample-data photos",
        "boring-assets sample-data s3://bucket/photos",
        "boring-assets sample-data photos --num-shards 4 --samples-per-shard 50 --broken 2",
    ),
)
@click.argument(
    "folder", metavar="DIR", help="Folder to write to, a path or a URI such as s3://bucket/prefix."
)
@_option("--num-shards", default=3, metavar="N", type=click.IntRange(1, 100_000), help="Number of shards.")
@_option(
    "--samples-per-shard",
    default=100,
    metavar="N",
    type=click.IntRange(1, 1_000_000),
    help="Samples in each shard.",
)
@_option(
    "--format",
    "layout",
    default="webdataset",
    type=click.Choice(["webdataset", "files", "parquet"]),
    help="Where the images are: in a tar or a folder beside each parquet, or in a column of it.",
)
@_option(
    "--encode-format",
    default="jpg",
    type=click.Choice(["jpg", "png", "webp"]),
    help="Format of the images.",
)
@_option(
    "--broken", default=0, metavar="N", type=click.IntRange(0), help="Number of broken samples in each shard."
)
@_option(
    "--image-size",
    default=256,
    metavar="N",
    type=click.IntRange(16, 4096),
    help="Width and height in pixels.",
)
@_option(
    "--seed",
    default=0,
    metavar="N",
    type=click.IntRange(0, 2**32),
    help="The same seed gives the same bytes.",
)
@_option(
    "--first-shard", default=0, metavar="N", type=click.IntRange(0, 99_999), help="Number of the first shard."
)
def sample_data(folder: str, num_shards: int, samples_per_shard: int, broken: int, **options: Any) -> None:
    """Write shards of generated, captioned images to DIR.

    Their layout is that of img2dataset. Shards that exist are replaced.
    """
    from fsspec.implementations.local import LocalFileSystem

    from boring_assets.sample_data import upload_sample_data, write_sample_data
    from boring_assets.storage.root import open_root

    if broken > samples_per_shard:
        raise SettingsError(f"--broken is {broken}, more than --samples-per-shard {samples_per_shard}.")
    options |= {"num_shards": num_shards, "samples_per_shard": samples_per_shard, "broken": broken}
    root = open_root(folder)
    if isinstance(root.fs, LocalFileSystem):
        try:
            write_sample_data(Path(root.path), **options)
        except OSError as error:
            raise StorageError(
                f"Cannot write {folder}: {error}. Give a folder that you may write."
            ) from error
    else:
        upload_sample_data(root, **options)
    each = f", {broken:,} broken in each" if broken else ""
    click.echo(f"{some(num_shards, 'shard')} of {some(samples_per_shard, 'sample')} in {folder}{each}.")
