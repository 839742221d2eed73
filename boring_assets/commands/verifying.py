"""`boring-assets verify`: checks an output, and with `--repair` embeds again what is wrong."""

import json
import sys
from collections import Counter
from typing import Any

import click
from rich.console import Console

from boring_assets.commands import exit_codes
from boring_assets.commands.options import apply, config, setting
from boring_assets.errors import SettingsError
from boring_assets.settings import Settings
from boring_assets.wording import first_of, plain, some

_SHOWN = 20


@click.command()
@click.argument("output_dir", metavar="OUTPUT")
@setting("input_dir", "--input")
@setting("model")
@setting("pretrained")
@setting("precision", metavar="auto|fp32|bf16|fp16")
@setting("device")
@setting("quiet_seconds", metavar="SECONDS")
@config
@click.option("--repair", is_flag=True, help="Embed again what is wrong, as `embed` does. Needs the input.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(repair: bool, as_json: bool, **options: Any) -> None:
    """Checks OUTPUT, reading every byte of every partition.

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
    settings = apply(options)
    report = look(settings)
    if as_json:
        click.echo(json.dumps(_as_json(report)))
    else:
        _say(report, settings)
    if not report.has_errors():
        return
    if not repair:
        sys.exit(exit_codes.WORK_TO_DO)
    console = Console(highlight=False, stderr=as_json)
    if repair_all(settings, report, console):
        sys.exit(exit_codes.FAILED_SHARDS)
    left = look(settings)
    if left.has_errors():
        if not as_json:
            _say(left, settings)
        sys.exit(exit_codes.WORK_TO_DO)
    console.print("Repaired: everything is sound now.")


def look(settings: Settings) -> Any:
    """Checks an output, and against its input where one is set; returns an `inspection.Report`.

    Raises:
        SettingsError: No output is set, or a URI is wrong.
        StorageError: The output, or the input, cannot be read.
    """
    from boring_assets.commands.inspection import inspect
    from boring_assets.storage.root import check_readable
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    root = EmbeddingsIOManager.from_settings(settings).root()
    check_readable(root)
    if not settings.input_dir:
        return inspect(root, None)
    source = ShardSource.from_settings(settings)
    return inspect(root, source.discover(), source=source.root())


def repair_all(settings: Settings, report: Any, console: Console) -> dict[str, str]:
    """Embeds again what is wrong.

    A damaged file is removed first, so that any later run can finish the repair.

    Args:
        settings: Input, output, model and the rest.
        report: What is wrong.
        console: Where to print.

    Returns:
        The shards that failed, and why.

    Raises:
        SettingsError: No input is set, or the settings are not those that made the output.
        StorageError: The output cannot be written.
        RunError: A run could not go on.
    """
    from boring_assets.commands.embedding import embed_all
    from boring_assets.commands.inspection import DAMAGE
    from boring_assets.output.totals import refresh_totals
    from resources.embeddings_io import EmbeddingsIOManager
    from resources.source import ShardSource

    if report.shards is None:
        raise SettingsError(
            "--repair needs the input to embed from. Set BORING_INPUT_DIR to the folder or bucket prefix "
            "that holds the shards."
        )
    embeddings = EmbeddingsIOManager.from_settings(settings)
    embeddings.check_input(ShardSource.from_settings(settings).root())
    redo = [key for key in report.bad() if key in report.shards]
    if redo:
        _check_same_model(settings, report)
    for key in set(report.bad(DAMAGE)) & set(redo) & report.checked.keys():
        embeddings.remove(key)  # the partition counts as `lost` now, and the next run embeds it again
    failed = embed_all(settings, only=redo, console=console).failed_shards if redo else {}
    refresh_totals(embeddings.root())
    return failed


def _check_same_model(settings: Settings, report: Any) -> None:
    """Refuses other settings than those of the output before anything is removed."""
    from boring_assets.commands.redoing import present_model

    most = report.model()
    if not most:
        return
    before, now = most["settings"], settings.embedding_version()
    if before != now:
        raise SettingsError(
            f"{settings.output_dir} was embedded with the settings {before}, not with {now} (model, "
            "pretrained, precision, output type). Give the same: BORING_MODEL, BORING_PRETRAINED, "
            "BORING_PRECISION, BORING_OUTPUT_DTYPE. To embed all of it again: boring-assets embed --redo."
        )
    digest = present_model(settings)["weights_digest"]
    if digest != most["weights_digest"]:
        raise SettingsError(
            f"BORING_MODEL {settings.model} has other weights now ({digest}) than those that "
            f"{settings.output_dir} was embedded with ({most['weights_digest']}). Put the old ones back, or "
            "embed all of it again: boring-assets embed --redo."
        )


def _say(report: Any, settings: Settings) -> None:
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


def _as_json(report: Any) -> dict[str, Any]:
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
