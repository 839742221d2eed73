"""`boring-assets near-duplicates`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.wording import plain, some


@click.command(
    "near-duplicates",
    cls=Command,
    examples=(
        "boring-assets near-duplicates s3://bucket/embeddings",
        "boring-assets near-duplicates embeddings --input photos --threshold 0.98",
    ),
)
@folder("output_dir")
@folder("input_dir", required=False)
@setting("duplicate_threshold", "--threshold", metavar="COSINE")
@config
def near_duplicates(**options: Any) -> None:
    """Find groups of near-identical images in OUTPUT.

    The index is updated first. With --input, images with almost equal embeddings are compared pixel by pixel
    to find exact duplicates.
    """
    import polars as pl

    from boring_assets.commands.runs import run_to_the_end
    from boring_assets.jobs import DUPLICATES_JOB, INDEX_JOB
    from boring_assets.search.duplicates import FILE
    from resources.embeddings_io import EmbeddingsIOManager

    settings = apply(options)
    run_to_the_end(settings, INDEX_JOB)
    run_to_the_end(settings, DUPLICATES_JOB)
    root = EmbeddingsIOManager.from_settings(settings).root()
    with root.fs.open(f"{root.path}/{FILE}", "rb") as file:
        found = pl.read_parquet(file)
    exact = (found["kind"] == "exact").sum()
    click.echo(f"{some(found['group'].n_unique(), 'group')} of {some(len(found), 'image')}, {exact:,} exact.")
    click.echo(plain(f"{root.uri}/{FILE}"))
