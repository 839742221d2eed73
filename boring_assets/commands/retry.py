"""`boring-assets retry`: embeds failed images again; the other rows of their shards do not change."""

import sys
from typing import TYPE_CHECKING, Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.engine.samples import Reason

if TYPE_CHECKING:
    from boring_assets.commands.report import Summary

_NOT_BY_DEFAULT = f"{Reason.NOT_DOWNLOADED} and {Reason.EXCLUDED}"


@click.command(
    cls=Command,
    examples=(
        "boring-assets retry photos embeddings",
        "boring-assets retry photos embeddings --reason fetch_error --shard 00017",
        "boring-assets retry s3://bucket/laion s3://bucket/embeddings --reason too_large --config large.toml",
    ),
)
@folder("input_dir")
@folder("output_dir")
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=click.Choice([reason.value for reason in Reason]),
    help=f"Only this reason; can be repeated. The default is all reasons except {_NOT_BY_DEFAULT}.",
)
@click.option("--shard", "shards", multiple=True, metavar="KEY", help="Only this shard; can be repeated.")
@setting("model")
@setting("pretrained")
@setting("batch_size", metavar="auto|N")
@setting("num_workers", metavar="N")
@setting("device")
@setting("precision", metavar="auto|fp32|bf16|fp16|int8")
@setting("quiet_seconds", metavar="SECONDS")
@setting("allowed_url_prefixes", metavar="PREFIX,...")
@config
def retry(reasons: tuple[str, ...], shards: tuple[str, ...], **options: Any) -> None:
    """Embed the failed images of OUTPUT again, and only those.

    Use it when a site is back, after raising a limit or allowing a format. Only the failed rows of embedded
    shards are read. Each shard's files are replaced at once, with the rows in the order of the input; an
    image that fails again gets the new reason. The model must be that of the output. Shards that have changed
    since are skipped: run `embed` for them.
    """
    from boring_assets.commands.retrying import retry_failed

    summary, changed = retry_failed(apply(options), [Reason(one) for one in reasons], shards)
    _print(summary, changed)
    sys.exit(exit_codes.FAILED_SHARDS if summary.failed_shards else 0)


def _print(summary: "Summary", changed: list[str]) -> None:
    from boring_assets.wording import first_of, plain, some

    if changed:
        count = some(len(changed), "shard")
        click.echo(plain(f"Changed since: {count}, which `embed` does: {first_of(changed)}"))
    if not summary.retried and not summary.failed_shards:
        click.echo("Nothing to retry: no image has failed for these reasons.")
        return
    again = summary.retried - summary.recovered
    click.echo(
        f"{some(summary.retried, 'failed image')} of {some(summary.shards, 'shard')} retried: "
        f"{summary.recovered:,} embedded now, {again:,} failed again."
    )
    for key, why in summary.failed_shards.items():
        click.echo(plain(f"Failed: {key}: {why}"))
