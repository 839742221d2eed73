"""For `boring-assets verify`: checks an output, and embeds again what is wrong."""

from rich.console import Console

from boring_assets.commands.embedding import embed_all
from boring_assets.commands.inspection import DAMAGE, Report, inspect
from boring_assets.commands.redoing import present_model
from boring_assets.errors import SettingsError
from boring_assets.output.totals import refresh_totals
from boring_assets.settings import Settings
from boring_assets.storage.root import check_readable
from resources.embeddings_io import EmbeddingsIOManager
from resources.source import ShardSource


def check_output(settings: Settings) -> Report:
    """Checks an output, and compares it with its input where one is set.

    Raises:
        SettingsError: No output is set, or a URI is wrong.
        StorageError: The output, or the input, cannot be read.
    """
    root = EmbeddingsIOManager.from_settings(settings).root()
    check_readable(root)
    if not settings.input_dir:
        return inspect(root)
    source = ShardSource.from_settings(settings)
    return inspect(root, source.discover(), source.root())


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
