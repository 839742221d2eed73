"""`boring-assets prune`: removes shards that left the input, and excluded images."""

import sys
from typing import TYPE_CHECKING, Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import Command, apply, config, folder, setting

if TYPE_CHECKING:
    from boring_assets.commands.pruning import Plan

_SHOWN = 20


@click.command(
    cls=Command,
    examples=(
        "boring-assets prune embeddings --input photos",
        "boring-assets prune embeddings --input photos --yes",
        "boring-assets prune s3://bucket/embeddings --exclude s3://bucket/excluded.txt --yes",
    ),
)
@folder("output_dir")
@folder("input_dir", required=False)
@setting("exclude", metavar="FILE")
@setting("quiet_seconds", metavar="SECONDS")
@setting("allowed_url_prefixes", metavar="PREFIX,...")
@config
@click.option("--yes", is_flag=True, help="Remove it. Without this, nothing is changed.")
@click.option(
    "--read-images", is_flag=True, help="Also compare the SHA-256 of each image, which reads the input."
)
@click.option("--all", "everything", is_flag=True, help="Also if no shard of the output is in the input.")
def prune(yes: bool, read_images: bool, everything: bool, **options: Any) -> None:
    """Remove from OUTPUT what left the input, and images that are excluded.

    For a shard that left the input, the output files and the partition are removed. An image on the list of
    BORING_EXCLUDE moves from the embeddings to the failures, with the reason `excluded`. metadata.json, the
    index and the near duplicates are updated.

    Without --yes, prune only shows what it would remove; the exit code is 4 if there is something to remove.
    """
    from boring_assets.commands.pruning import carry_out, make_plan

    settings = apply(options)
    plan = make_plan(settings, read_images=read_images, everything=everything)
    _print(plan)
    if not plan:
        click.echo("Nothing to remove.")
    elif not yes:
        click.echo("Nothing was changed: add --yes to remove this.")
        sys.exit(exit_codes.WORK_TO_DO)
    else:
        for line in carry_out(settings, plan):
            click.echo(line)


def _print(plan: "Plan") -> None:
    from boring_assets.wording import plain, some

    for note in plan.notes:
        click.echo(plain(note))
    if plan.gone:
        click.echo(f"{some(len(plan.gone), 'shard')} left the input:")
        _print_some([f"  {key}" for key in plan.gone])
    if plan.excluded:
        count = sum(map(len, plan.excluded.values()))
        click.echo(f"{some(count, 'image')} of {some(len(plan.excluded), 'shard')} excluded:")
        _print_some(
            [
                f"  {key}  row {row}  {failure.detail}"
                for key, rows in plan.excluded.items()
                for row, failure in sorted(rows.items())
            ]
        )


def _print_some(lines: list[str]) -> None:
    from boring_assets.wording import plain

    for line in lines[:_SHOWN]:
        click.echo(plain(line))
    if len(lines) > _SHOWN:
        click.echo(f"  ... and {len(lines) - _SHOWN:,} more")
