"""The commands around the data: `sample-data`, `list-pictures`, `export`, `cost`."""

import json
from pathlib import Path
from typing import Any

import click

from boring_assets.commands.options import FILE, INPUT, OUTPUT, apply, command, number, setting, with_settings
from boring_assets.errors import SettingsError, StorageError
from boring_assets.wording import some

_LARGEST_SHARD = 1_000_000


@command(
    "boring-assets sample-data photos",
    "boring-assets sample-data s3://bucket/photos",
    "boring-assets sample-data photos --num-shards 4 --samples-per-shard 50 --broken 2",
)
@click.argument(
    "folder", metavar="DIR", help="Folder to write to, a path or a URI such as s3://bucket/prefix."
)
@number("--num-shards", default=3, least=1, most=100_000, help="Number of shards.")
@number("--samples-per-shard", default=100, least=1, most=_LARGEST_SHARD, help="Samples in each shard.")
@click.option(
    "--format",
    "layout",
    default="webdataset",
    show_default=True,
    type=click.Choice(["webdataset", "files", "parquet"]),
    help="Where the images are: in a tar or a folder beside each parquet, or in a column of it.",
)
@click.option(
    "--encode-format",
    default="jpg",
    show_default=True,
    type=click.Choice(["jpg", "png", "webp"]),
    help="Format of the images.",
)
@number("--broken", default=0, help="Number of broken samples in each shard.")
@number("--image-size", default=256, least=16, most=4096, help="Width and height in pixels.")
@number("--seed", default=0, most=2**32, help="The same seed gives the same bytes.")
@number("--first-shard", default=0, most=99_999, help="Number of the first shard.")
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
                f"Cannot write {folder}: {error}. Give a folder that you can write to."
            ) from error
    else:
        upload_sample_data(root, **options)
    each = f", {broken:,} broken in each" if broken else ""
    click.echo(f"{some(num_shards, 'shard')} of {some(samples_per_shard, 'sample')} in {folder}{each}.")


@command("boring-assets list-pictures photos", "boring-assets embed photos embeddings")
@click.argument("folder", metavar="DIR", help="Path or URI of the folder; the shards are written to it.")
@number("--samples-per-shard", default=10_000, least=1, most=_LARGEST_SHARD, help="Most images in a shard.")
def list_pictures(folder: str, samples_per_shard: int) -> None:
    """List the image files below DIR in parquet shards, which `embed` can read.

    The images are not moved. The shards are pictures-00000.parquet and so on. A later call lists new
    images in new shards. A `.txt` file of the same name is an image's caption.
    """
    from boring_assets.commands.picture_lists import write_lists

    sizes = write_lists(folder, samples_per_shard)
    click.echo(f"{some(sum(sizes), 'new picture')} in {some(len(sizes), 'new list')}.")


@command(
    "boring-assets export s3://bucket/embeddings ./for-clip-retrieval --format clip-retrieval",
    "boring-assets export embeddings dogs --format hf --where \"aesthetic > 5 AND animal = 'dog'\"",
    "boring-assets export embeddings shards --format webdataset --input photos --no-near-duplicates",
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
@INPUT
@with_settings()
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


@command(
    "boring-assets cost 1000000000 --prices prices.toml --images-per-second 2589 --dim 768",
    "boring-assets cost 1000000000 --prices prices.toml --output s3://bucket/embeddings --machines 8",
)
@click.argument("images", type=click.IntRange(1), help="Number of images.")
@click.option("--prices", type=FILE, required=True, help="TOML file with prices; docs/scale.md has one.")
@OUTPUT
@click.option("--benchmark", type=FILE, help="File that `python -m benchmarks.gpu --out FILE` wrote.")
@click.option("--images-per-second", type=click.FloatRange(0, min_open=True), help="Speed of one device.")
@setting("model", help="Model to take from the benchmark.")
@click.option("--dim", type=click.IntRange(1), help="Length of an embedding, without --output.")
@number("--machines", default=1, least=1, help="Number of machines.")
@number("--images-per-shard", default=10_000, least=1, help="Images in each shard.")
@with_settings()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cost(
    images: int,
    prices: Path,
    output_dir: str | None,
    model: str | None,
    config: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Estimate the hours, the cost and the storage of embedding IMAGES images.

    You give the prices (--prices). The speed is that of an output that was embedded with this DAGSTER_HOME
    (--output), of the GPU benchmark (--benchmark), or given (--images-per-second).
    """
    from boring_assets.commands.costs import estimate, print_estimate

    settings = apply({"output_dir": output_dir, "model": model, "config": config})
    answer = estimate(images, prices, settings, output=bool(output_dir), **options)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        print_estimate(answer)
