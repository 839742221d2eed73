"""`boring-assets verify`."""

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from boring_assets.commands import exit_codes
from boring_assets.commands.options import Command, apply, config, folder, setting
from boring_assets.settings import Settings
from boring_assets.wording import first_of, plain, some

if TYPE_CHECKING:
    from boring_assets.commands.inspection import Report

_SHOWN = 20


@click.command(
    cls=Command,
    examples=(
        "boring-assets verify s3://bucket/embeddings",
        "boring-assets verify embeddings --input photos",
        "boring-assets verify embeddings --input photos --repair",
    ),
)
@folder("output_dir")
@folder("input_dir", required=False)
@setting("model")
@setting("pretrained")
@setting("precision", metavar="auto|fp32|bf16|fp16|int8")
@setting("device")
@setting("quiet_seconds", metavar="SECONDS")
@config
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

    from boring_assets.commands.verifying import check_output, repair_all

    settings = apply(options)
    report = check_output(settings)
    if as_json:
        click.echo(json.dumps(_as_json(report)))
    else:
        _print(report, settings)
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
            _print(left, settings)
        sys.exit(exit_codes.WORK_TO_DO)
    console.print("Repaired: everything is sound now.")


def _print(report: "Report", settings: Settings) -> None:
    """Prints the findings, errors first, and what to type next."""
    bad = report.bad()
    lines = [
        (finding, f"{key}: {finding.text}")
        for key, findings in sorted(report.partitions.items())
        for finding in findings
    ]
    lines += [(finding, finding.text) for finding in report.output]
    shown: Counter[str] = Counter()
    for finding, text in sorted(lines, key=lambda line: line[0].severity):
        shown[finding.kind] += 1
        if shown[finding.kind] <= _SHOWN:
            click.secho(
                plain(f"{finding.severity:<6} {finding.kind:<16} {text}"),
                fg="red" if finding.severity == "error" else None,
            )
    for kind, count in shown.items():
        if count > _SHOWN:
            click.echo(f"... and {count - _SHOWN:,} more of {kind}; --json shows all.")
    checked = some(len(report.checked), "partition")
    if not report.has_errors():
        against = "" if report.shards is not None else " The input was not checked: give --input."
        click.echo(f"{checked} checked: all sound.{against}")
        return
    click.echo(f"{checked} checked, {len(bad):,} to embed again" + (f": {first_of(bad)}" if bad else "."))
    if report.shards is not None and (gone := [key for key in bad if key not in report.shards]):
        click.echo(f"No longer in the input, so they cannot be: {first_of(gone)}. Move their files away.")
    click.echo(plain(f"Repair it: boring-assets verify {settings.output_dir} --input ... --repair"))


def _as_json(report: "Report") -> dict[str, Any]:
    findings = [
        {"partition": key, **vars(finding)}
        for key, found in sorted(report.partitions.items())
        for finding in found
    ]
    return {
        "partitions": len(report.checked),
        "redo": report.bad(),
        "findings": findings + [{"partition": None, **vars(finding)} for finding in report.output],
    }
