"""Runs a job over all committed partitions of an output, for the commands that compute something for each."""

import sys

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.runs import run_to_the_end
from boring_assets.errors import StorageError
from boring_assets.instance.homes import open_instance
from boring_assets.parts import get_parts, register_keys
from boring_assets.settings import Settings
from boring_assets.shard_states import ranges
from boring_assets.tags import range_tags
from boring_assets.wording import plain, some
from resources.embeddings_io import EmbeddingsIOManager


def run_for_all(settings: Settings, job: str, verb: str, folder: str) -> None:
    """Runs the job in this process, prints the result and ends with the exit code.

    Args:
        settings: The output and the rest.
        job: The job of an asset with the partitions of `image_embeddings`.
        verb: For the message, e.g. `scored`.
        folder: The asset's folder in the output.

    Raises:
        StorageError: Nothing is embedded yet, or the output cannot be read.
        RunError: The run stopped.
    """
    instance = open_instance(settings.output_dir)
    committed = EmbeddingsIOManager.from_settings(settings).committed()
    if not committed:
        raise StorageError(
            f"Nothing is embedded below {settings.output_dir} yet. Run `boring-assets embed` first."
        )
    # The shards may have been embedded with another DAGSTER_HOME.
    register_keys(instance, sorted(committed), settings)
    failed: dict[str, str] = {}
    for part in get_parts(settings):
        for first, last, _ in ranges(part.keys(instance), committed, settings.partitions_per_run):
            failed |= run_to_the_end(settings, part.local_name(job), range_tags(first, last))
    count = len(committed) - len(failed)
    click.echo(f"{some(count, 'shard')} {verb}: {settings.output_dir.rstrip('/')}/{folder}/*.parquet")
    for key, why in failed.items():
        click.secho(plain(f"Failed    {key}: {why}"), fg="red", err=True)
    sys.exit(exit_codes.FAILED_SHARDS if failed else 0)
