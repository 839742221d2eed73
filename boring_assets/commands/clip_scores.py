"""`boring-assets clip-scores`."""

import sys
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.errors import StorageError
from boring_assets.wording import plain, some


@click.command(
    "clip-scores",
    cls=Command,
    examples=(
        "boring-assets clip-scores s3://bucket/embeddings",
        "boring-assets clip-scores embeddings --caption-embeddings",
    ),
)
@folder("output_dir")
@setting("model")
@setting("pretrained")
@setting("device")
@setting("precision", metavar="auto|fp32|bf16|fp16")
@setting("caption_embeddings", is_flag=True, default=None)
@config
def clip_scores(**options: Any) -> None:
    """Score how well each caption in OUTPUT fits its image.

    Shards that have scores already are left alone.
    """
    from boring_assets.commands.runs import run_to_the_end
    from boring_assets.datasets import Dataset
    from boring_assets.instance.homes import open_instance
    from boring_assets.jobs import SCORES_JOB
    from boring_assets.parts import get_parts, register_keys
    from boring_assets.shard_states import ranges
    from boring_assets.tags import range_tags
    from resources.embeddings_io import EmbeddingsIOManager

    settings = apply(options)
    instance = open_instance(settings.output_dir)
    committed = EmbeddingsIOManager.from_settings(settings).committed()
    if not committed:
        raise StorageError(
            f"Nothing is embedded below {settings.output_dir} yet. Run `boring-assets embed` first."
        )
    dataset = Dataset.from_settings(settings)
    # The shards may have been embedded with another DAGSTER_HOME.
    register_keys(instance, sorted(committed), settings, dataset)
    failed: dict[str, str] = {}
    for part in get_parts(settings, dataset):
        for first, last, _ in ranges(part.keys(instance), committed, settings.partitions_per_run):
            failed |= run_to_the_end(settings, part.local_name(SCORES_JOB), range_tags(first, last))
    count = len(committed) - len(failed)
    click.echo(f"{some(count, 'shard')} scored: {settings.output_dir.rstrip('/')}/clip_scores/*.parquet")
    for key, why in failed.items():
        click.secho(plain(f"Failed    {key}: {why}"), fg="red", err=True)
    sys.exit(exit_codes.FAILED_SHARDS if failed else 0)
