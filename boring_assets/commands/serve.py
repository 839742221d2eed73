"""`boring-assets serve`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder, setting


@click.command(
    cls=Command,
    examples=(
        "boring-assets serve embeddings --input photos",
        "boring-assets serve s3://bucket/embeddings --input s3://bucket/laion --port 8200",
    ),
)
@folder("output_dir")
@folder("input_dir", required=False)
@setting("model", help="Model of the query. By default the one that made the embeddings.")
@setting("pretrained")
@setting("device")
@config
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Other machines can reach any but a loopback address.",
)
@click.option(
    "--port",
    default=8100,
    show_default=True,
    metavar="N",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    metavar="NAME",
    multiple=True,
    help="Another host name that the page may be opened by; * allows all.",
)
@click.option("--no-update", is_flag=True, help="Use the index as it is, without new shards.")
def serve(host: str, port: int, allowed_hosts: tuple[str, ...], no_update: bool, **options: Any) -> None:
    """Open a web page to search OUTPUT in.

    Only this machine can reach the page, unless --host says otherwise. It asks for no password.
    """
    from boring_assets.commands.search import open_searcher
    from boring_assets.search.web import listen

    settings = apply(options)
    if not settings.input_dir:
        click.secho("Without --input there are no images to show.", fg="yellow", err=True)
    listen(settings, open_searcher(settings, update=not no_update), host, port, allowed_hosts)
