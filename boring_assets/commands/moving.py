"""`boring-assets set-input`: says that the input of an output was moved."""

import click


@click.command("set-input")
@click.argument("output_dir", metavar="OUTPUT")
@click.argument("input_dir", metavar="INPUT")
def set_input_command(output_dir: str, input_dir: str) -> None:
    """Says that the input of OUTPUT was moved, and is INPUT now.

    An output belongs to one input, and another one is refused. After this command INPUT is its input. Nothing
    is embedded, and no row changes; shards whose size, time or ETag changed on the way count as changed.

    Example: boring-assets set-input s3://bucket/embeddings s3://new-bucket/laion
    """
    from boring_assets.output.origin import set_input
    from boring_assets.storage.root import check_readable, open_root

    output, source = open_root(output_dir), open_root(input_dir)
    check_readable(output)
    check_readable(source)
    before = set_input(output, source)
    click.echo(f"The input of {output.uri} is {source.uri} now" + (f"; it was {before}." if before else "."))
