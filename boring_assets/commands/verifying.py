"""For `boring-assets verify`: prints what is wrong with an output, and embeds it again."""

from collections import Counter

import click
from rich.console import Console

from boring_assets.commands.embedding import embed_all, present_model
from boring_assets.commands.inspection import DAMAGE, Report
from boring_assets.errors import SettingsError
from boring_assets.output.totals import refresh_totals
from boring_assets.settings import Settings
from boring_assets.wording import first_of, plain, some
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource

_SHOWN = 20


def repair_all(settings: Settings, report: Report, console: Console) -> dict[str, str]:
    """Embeds again what is wrong; returns the shards that failed, and why.

    A damaged file is removed first, so that any later run can finish the repair.

    Raises:
        SettingsError: No input is set, or the settings are not those that made the output.
        StorageError: The output cannot be written.
        RunError: A run failed.
    """
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


def _check_same_model(settings: Settings, report: Report) -> None:
    """Refuses other settings than those of the output before anything is removed."""
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


def print_report(report: Report, settings: Settings) -> None:
    """Prints the findings, errors first, and what to type next."""
    bad = report.bad()
    lines = [(finding, f"{key}: {finding.text}" if key else finding.text) for key, finding in report.all()]
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
        click.echo(
            f"No longer in the input, so they cannot be embedded again: {first_of(gone)}. "
            "boring-assets prune removes them."
        )
    click.echo(plain(f"Repair it: boring-assets verify {settings.output_dir} --input ... --repair"))
