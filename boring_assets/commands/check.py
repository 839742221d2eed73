"""The commands that check an output and put it right: `failures`, `retry`, `verify`, `prune`, `set-input`."""

import json
import sys
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import INPUT, apply, command, folder, number, with_settings
from boring_assets.engine.samples import Reason
from boring_assets.wording import plain

_REASONS = click.Choice([reason.value for reason in Reason])
_NOT_BY_DEFAULT = f"{Reason.NOT_DOWNLOADED} and {Reason.EXCLUDED}"


@command(
    "boring-assets failures s3://bucket/embeddings",
    "boring-assets failures embeddings --reason decode_error --shard 00001 --json",
)
@folder("output_dir")
@with_settings()
@click.option("--shard", metavar="KEY", help="Only this shard, e.g. 00000.")
@click.option("--reason", "reasons", multiple=True, type=_REASONS, help="Only this reason; can be repeated.")
@number("--limit", default=20, help="Most rows shown; 0 is all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a row.")
def failures(shard: str | None, reasons: tuple[str, ...], limit: int, as_json: bool, **options: Any) -> None:
    """Show which samples of OUTPUT were not embedded, and why."""
    import polars as pl

    from partitions.own_files import FAILURES
    from resources.embeddings_io import EmbeddingsIOManager

    rows = EmbeddingsIOManager.from_settings(apply(options)).scan(shard, FAILURES)
    if reasons:
        rows = rows.filter(pl.col("reason").is_in(reasons))
    table = rows.collect()
    shown = table.head(limit) if limit else table
    if as_json:
        for row in shown.iter_rows(named=True):
            click.echo(json.dumps(row))
        return
    for name, count in table["reason"].value_counts(sort=True).iter_rows():
        click.echo(f"{count:>8,}  {name}")
    width = max((len(name) for name in shown["reason"]), default=0)
    for row in shown.iter_rows(named=True):
        line = f"{row['key']}  {row['reason']:<{width}}  {row['detail']}  {row['url'] or ''}"
        click.echo(plain(line.rstrip()))
    if len(table) > len(shown):
        click.echo(f"... and {len(table) - len(shown):,} more; --limit 0 shows all.")
    if not len(table):
        click.echo("No failures.")


@command(
    "boring-assets retry photos embeddings",
    "boring-assets retry photos embeddings --reason fetch_error --shard 00017",
    "boring-assets retry s3://bucket/laion s3://bucket/embeddings --reason too_large --config large.toml",
)
@folder("input_dir")
@folder("output_dir")
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=_REASONS,
    help=f"Only this reason; can be repeated. The default is all reasons except {_NOT_BY_DEFAULT}.",
)
@click.option("--shard", "shards", multiple=True, metavar="KEY", help="Only this shard; can be repeated.")
@with_settings(
    *("model", "pretrained", "batch_size", "num_workers", "device", "precision"),
    *("quiet_seconds", "allowed_url_prefixes"),
)
def retry(reasons: tuple[str, ...], shards: tuple[str, ...], **options: Any) -> None:
    """Embed the failed images of OUTPUT again, and only those.

    Use it when a site is back, after raising a limit or allowing a format. Only the failed rows of embedded
    shards are read. Each shard's files are replaced at once, with the rows in the order of the input; an
    image that fails again gets the new reason. The model must be that of the output. Shards that have changed
    since are skipped: run `embed` for them.
    """
    from boring_assets.commands.retrying import retry_failed

    summary = retry_failed(apply(options), [Reason(one) for one in reasons], shards)
    sys.exit(exit_codes.FAILED_SHARDS if summary.failed_shards else 0)


@command(
    "boring-assets verify s3://bucket/embeddings",
    "boring-assets verify embeddings --input photos",
    "boring-assets verify embeddings --input photos --repair",
)
@folder("output_dir")
@INPUT
@with_settings("model", "pretrained", "precision", "device", "quiet_seconds")
@click.option("--repair", is_flag=True, help="Embed again what is wrong; needs the input.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(repair: bool, as_json: bool, **options: Any) -> None:
    """Check OUTPUT: read every byte of every partition.

    Every file opens and its checksums are right. Counts add up, and each input row is embedded or failed,
    once. Vectors are finite and of length 1. One model embedded all of it, from one input. With an input
    (--input or BORING_INPUT_DIR) also: each shard is embedded, in its present version, with all of its rows.

    Nothing is written without --repair. With it, damaged embeddings files are removed where the input still
    has the shard, and these, the changed and the missing shards are embedded through Dagster, with the
    settings given. If that is interrupted, the next `embed` or the sensor does the rest. Files that belong to
    no partition, or whose shard is gone, are reported and never touched.

    The exit code is 0 where nothing is wrong, 4 where something needs a repair, and with --repair 3 where
    shards failed.
    """
    from rich.console import Console

    from boring_assets.commands.inspection import check_output
    from boring_assets.commands.verifying import print_report, repair_all

    settings = apply(options)
    report = check_output(settings)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        print_report(report, settings)
    if not report.has_errors():
        return
    if not repair:
        sys.exit(exit_codes.WORK_TO_DO)
    console = Console(highlight=False, stderr=as_json)
    if repair_all(settings, report, console):
        sys.exit(exit_codes.FAILED_SHARDS)
    left = check_output(settings)
    if left.has_errors():
        if not as_json:
            print_report(left, settings)
        sys.exit(exit_codes.WORK_TO_DO)
    console.print("Repaired: everything is sound now.")


@command(
    "boring-assets prune embeddings --input photos",
    "boring-assets prune embeddings --input photos --yes",
    "boring-assets prune s3://bucket/embeddings --exclude s3://bucket/excluded.txt --yes",
)
@folder("output_dir")
@INPUT
@with_settings("exclude", "quiet_seconds", "allowed_url_prefixes")
@click.option("--yes", is_flag=True, help="Really remove; without it, nothing is changed.")
@click.option(
    "--read-images", is_flag=True, help="Also compare the SHA-256 of each image, which reads the input."
)
@click.option(
    "--all", "everything", is_flag=True, help="Remove even if the input has no shard of the output."
)
def prune(yes: bool, read_images: bool, everything: bool, **options: Any) -> None:
    """Remove from OUTPUT what left the input, and images that are excluded.

    For a shard that left the input, the output files and the partition are removed. An image on the list of
    BORING_EXCLUDE moves from the embeddings to the failures, with the reason `excluded`. metadata.json, the
    index and the near duplicates are updated.

    Without --yes, prune only shows what it would remove; the exit code is 4 if there is something to remove.
    """
    from boring_assets.commands.pruning import carry_out, make_plan, print_plan

    settings = apply(options)
    plan = make_plan(settings, read_images=read_images, everything=everything)
    print_plan(plan)
    if not plan:
        click.echo("Nothing to remove.")
    elif not yes:
        click.echo("Nothing was changed: add --yes to remove this.")
        sys.exit(exit_codes.WORK_TO_DO)
    else:
        for line in carry_out(settings, plan):
            click.echo(line)


@command("boring-assets set-input s3://bucket/embeddings s3://new-bucket/laion")
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
