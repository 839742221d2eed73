"""`boring-assets set-input`."""

import click

from boring_assets.commands.options import Command


@click.command(
    "set-input",
    cls=Command,
    examples=("boring-assets set-input s3://bucket/embeddings s3://new-bucket/laion",),
)
@click.argument("output", help="Path or URI of the output.")
@click.argument("input", help="Path or URI where its input is now.")
def set_input(output: str, input: str) -> None:
    """Record that the input of OUTPUT was moved to INPUT.

    An output belongs to one input, and another one is refused. Nothing is embedded, and no row changes;
    shards whose size, time or ETag changed on the way count as changed.
    """
    from boring_assets.output.origin import set_input as record_input
    from boring_assets.storage.root import check_readable, open_root

    root, source = open_root(output), open_root(input)
    check_readable(root)
    check_readable(source)
    before = record_input(root, source)
    click.echo(f"The input of {root.uri} is {source.uri} now" + (f"; it was {before}." if before else "."))
