"""`boring-assets register`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.wording import first_of, plain, some


@click.command(cls=Command, examples=("boring-assets register s3://bucket/laion s3://bucket/embeddings",))
@folder("input_dir")
@folder("output_dir")
@setting("quiet_seconds", metavar="SECONDS")
@config
def register(**options: Any) -> None:
    """Register new shards of INPUT as partitions, without embedding them.

    After that they can be selected in Dagster: in the UI, for a backfill, or by `dagster asset materialize`.
    """
    from boring_assets.instance.homes import open_instance
    from boring_assets.parts import get_parts, register_shards
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    settings = apply(options)
    source = ShardSource.from_settings(settings)
    EmbeddingsIOManager.from_settings(settings).check(source.root())
    found = source.discover()
    added = register_shards(open_instance(settings.output_dir), found, settings)
    known = len(found.shards) - len(added)
    click.echo(f"{some(len(added), 'shard')} registered" + (f", {known:,} known before." if known else "."))
    if settings.split:
        click.echo(f"They are in {some(len(get_parts(settings)), 'part')}.")
    if found.growing:
        click.echo(f"{some(len(found.growing), 'shard')} still being written: {first_of(found.growing)}")
    for path, why in found.refused.items():
        click.echo(plain(f"Refused: {path}: {why}"))
    if not found.shards and not found.growing:
        click.echo(plain(found.explain_empty(source.root().uri)))
