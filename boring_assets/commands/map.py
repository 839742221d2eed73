"""`boring-assets map`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, index_of, server


@click.command(
    cls=Command,
    examples=(
        "boring-assets map embeddings --input photos",
        "boring-assets map s3://bucket/embeddings --sample 100000 --where 'meta_width >= 512'",
    ),
)
@index_of
@click.option(
    "--sample",
    "limit",
    default=20_000,
    show_default=True,
    metavar="N",
    type=click.IntRange(2, 5_000_000),
    help="Most images on the map, taken from all over the dataset.",
)
@click.option("--where", metavar="SQL", default="", help="Filter, e.g. 'meta_width >= 512'.")
@server(8200)
def map(
    limit: int,
    where: str,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    no_update: bool,
    **options: Any,
) -> None:
    """Open a map of the embeddings of OUTPUT, in Apple's Embedding Atlas.

    Similar images are near each other. The index is updated first. Needs the extra `map`.
    """
    from boring_assets.commands.search import open_searcher
    from boring_assets.search.map import open_map
    from boring_assets.search.web import check_installed

    check_installed("The map", "embedding_atlas", extra="map")
    settings = apply(options)
    if not settings.input_dir:
        click.secho("Without --input there are no images to show.", fg="yellow", err=True)
    searcher = open_searcher(settings, update=not no_update, pictures=True)
    open_map(settings, searcher, limit=limit, where=where, host=host, port=port, more_hosts=allowed_hosts)
