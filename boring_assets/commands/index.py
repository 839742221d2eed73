"""`boring-assets index`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder
from boring_assets.wording import plain, some


@click.command(
    cls=Command,
    examples=("boring-assets index s3://bucket/embeddings", "boring-assets index embeddings --rebuild"),
)
@folder("output_dir")
@config
@click.option("--rebuild", is_flag=True, help="Read all embeddings again.")
def index(rebuild: bool, **options: Any) -> None:
    """Update the search index of OUTPUT."""
    from boring_assets.commands.runs import run_to_the_end
    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.jobs import INDEX_JOB
    from boring_assets.search.lance import FOLDER
    from boring_assets.search.query import Searcher
    from resources.embeddings_io import EmbeddingsIOManager

    settings = apply(options)
    asset = Dataset.from_settings(settings).asset(FOLDER)
    run_config = {"ops": {asset.to_python_identifier(): {"config": {"rebuild": rebuild}}}}
    run_to_the_end(settings, INDEX_JOB, config=run_config)
    event = open_instance(settings.output_dir).get_latest_materialization_event(asset)
    columns: Any = (
        event and event.asset_materialization and event.asset_materialization.metadata.get("columns")
    )
    for name, note in (columns.data if columns else {}).items():
        click.echo(plain(f"Column {name}: {note}"), err=True)
    count = Searcher(settings, EmbeddingsIOManager.from_settings(settings).root()).count()
    click.echo(f"The index holds {some(count, 'image')} and is up to date.")
