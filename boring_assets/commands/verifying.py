"""`boring-assets verify`: whether an output is sound, and with `--repair` what it takes to make it so."""

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
    """Checks that OUTPUT is sound: every byte of every partition is read.

    Every file opens, its checksums are right, counts add up, vectors are finite and of length 1, no row is
    there twice, and one model made all of it. With an input (--input or BORING_INPUT_DIR) also: each shard
    is embedded, in its present version, with all of its rows.

    Nothing is written without --repair. With it, the damaged embeddings files of shards that the input
    still holds are removed, and these, the changed and the missing shards are embedded at once, through
    Dagster, with the settings given. If that is interrupted, the next `embed`, or the sensor, does the rest.
    Strays, and files of shards that are gone, are reported and never touched.

    The exit code is 0 where all is sound, 4 where something is to be done, and with --repair 3 where
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
    """Checks an output, against its input where one is set; the result is an `inspection.Report`.

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
    return inspect(root, ShardSource.from_settings(settings).discover() if settings.input_dir else None)


def repair_all(settings: Settings, report: Any, console: Console) -> dict[str, str]:
    """Embeds again what is wrong, and leaves a mark that others can finish by.

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

    if report.shards is None:
        raise SettingsError(
            "--repair needs the input to embed from. Set BORING_INPUT_DIR to the folder or bucket prefix "
            "that holds the shards."
        )
    embeddings = EmbeddingsIOManager.from_settings(settings)
    redo = [key for key in report.bad() if key in report.shards]
    if redo:
        _check_same_model(settings, report)
    for key in set(report.bad(DAMAGE)) & set(redo) & report.checked.keys():
        embeddings.remove(key)  # a partition without its file is `lost`, and whoever comes next does it again
    failed = embed_all(settings, only=redo, console=console).failed_shards if redo else {}
    refresh_totals(embeddings.root())
    return failed


def _check_same_model(settings: Settings, report: Any) -> None:
    """Refuses before anything is removed: half an output by one model and half by another helps nobody."""
    from boring_assets.commands.redoing import weights

    most = report.model()
    if not most:
        return
    made, now = most["settings"], settings.embedding_version()
    if made != now:
        raise SettingsError(
            f"{settings.output_dir} was made by the settings {made}, not by {now} (model, pretrained, "
            "precision, output type). Give the same: BORING_MODEL, BORING_PRETRAINED, BORING_PRECISION, "
            "BORING_OUTPUT_DTYPE. To make all of it anew: boring-assets embed --redo."
        )
    digest = weights(settings)["weights_digest"]
    if digest != most["weights_digest"]:
        raise SettingsError(
            f"BORING_MODEL {settings.model} has other weights now ({digest}) than those that made "
            f"{settings.output_dir} ({most['weights_digest']}). Put the old ones back, or make all of it "
            "anew: boring-assets embed --redo."
        )


def _say(report: Any, settings: Settings) -> None:
    """The findings, the most frequent kinds first, and what to type next."""
    bad = report.bad()
    lines = [(one, f"{key}: {one.text}") for key, its in sorted(report.partitions.items()) for one in its]
    lines += [(one, one.text) for one in report.output]
    shown: Counter[str] = Counter()
    for one, text in sorted(lines, key=lambda line: line[0].severity):
        shown[one.kind] += 1
        if shown[one.kind] <= _SHOWN:
            click.secho(
                plain(f"{one.severity:<6} {one.kind:<16} {text}"),
                fg="red" if one.severity == "error" else None,
            )
    for kind, count in shown.items():
        if count > _SHOWN:
            click.echo(f"... and {count - _SHOWN:,} more of {kind}; --json shows all.")
    checked = some(len(report.checked), "partition")
    if not report.has_errors():
        against = "" if report.shards is not None else " The input was not looked at: give --input."
        click.echo(f"{checked} checked: all sound.{against}")
        return
    click.echo(f"{checked} checked, {len(bad):,} to be done again" + (f": {first_of(bad)}" if bad else "."))
    if report.shards is not None and (gone := [key for key in bad if key not in report.shards]):
        click.echo(f"No longer in the input, so they cannot be: {first_of(gone)}. Move their files away.")
    click.echo(plain(f"Mend it: boring-assets verify {settings.output_dir} --input ... --repair"))


def _as_json(report: Any) -> dict[str, Any]:
    found = [{"partition": key, **vars(one)} for key, its in sorted(report.partitions.items()) for one in its]
    return {
        "partitions": len(report.checked),
        "redo": report.bad(),
        "findings": found + [{"partition": None, **vars(one)} for one in report.output],
    }
