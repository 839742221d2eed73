"""`boring-assets serve`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, index_of, server


@click.command(
    cls=Command,
    examples=(
        "boring-assets serve embeddings --input photos",
        "boring-assets serve s3://bucket/embeddings --input s3://bucket/laion --port 8200",
    ),
)
@index_of
@server(8100)
def serve(host: str, port: int, allowed_hosts: tuple[str, ...], no_update: bool, **options: Any) -> None:
    """Open a web page to search OUTPUT in.

    Only this machine can reach the page, unless --host says otherwise. It asks for no password.
    """
    from boring_assets.commands.search import open_searcher
    from boring_assets.search.web import listen

    settings = apply(options)
    if not settings.input_dir:
        click.secho("Without --input there are no images to show.", fg="yellow", err=True)
    listen(settings, open_searcher(settings, update=not no_update, pictures=True), host, port, allowed_hosts)
