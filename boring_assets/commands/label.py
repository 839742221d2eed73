"""`boring-assets label`."""

from typing import Any

import click

from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.errors import SettingsError


@click.command(
    cls=Command,
    examples=(
        "boring-assets label s3://bucket/embeddings --config settings.toml",
        "BORING_CONFIG=settings.toml boring-assets label embeddings",
    ),
)
@folder("output_dir")
@setting("model")
@setting("pretrained")
@setting("device")
@setting("precision", metavar="auto|fp32|bf16|fp16|int8")
@config
def label(**options: Any) -> None:
    """Compute the heads of the settings for each image in OUTPUT.

    A head is a list of labels to choose from, or a small model over embeddings. No image is decoded.
    Only what is new or has changed is computed.
    """
    from boring_assets.commands.per_partition import run_for_all
    from boring_assets.jobs import LABELS_JOB
    from partitions.own_files import LABELS

    settings = apply(options)
    if not settings.heads:
        raise SettingsError(
            "BORING_HEADS is empty: there is nothing to compute. Name a head in the settings file, e.g. "
            '[heads.animal] with labels = ["cat", "dog"], and give the file with --config.'
        )
    run_for_all(settings, LABELS_JOB, "labelled", LABELS)
