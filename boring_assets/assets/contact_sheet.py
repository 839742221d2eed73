"""The two sheets of a materialization: the first images of the shard, and its first failures."""

import base64
import io

import numpy as np

from boring_assets.assets.events import cell
from boring_assets.engine.pipeline import EmbeddedShard
from boring_assets.secrets import without_secrets

_SIDE = 96
_COLUMNS = 6
_QUALITY = 50
_FAILURES = 12


def contact_sheet(result: EmbeddedShard) -> str:
    """Returns a Markdown table of the images that the engine kept, each above its caption.

    Empty where no image was kept. The images are in the text itself, as `data:` URIs: Dagster's UI shows
    those, but no files of the output. A dozen of them take about 20 kB of the event log.
    """
    captions = _texts(result, "caption", [row for row, _ in result.previews])
    pictures = [f"![]({_data_uri(pixels)})" for _, pixels in result.previews]
    lines: list[str] = []
    for start in range(0, len(pictures), _COLUMNS):
        row = slice(start, start + _COLUMNS)
        lines.append(f"| {' | '.join(pictures[row])} |")
        if len(lines) == 1:
            lines.append("|---" * len(pictures[row]) + "|")
        lines.append(f"| {' | '.join(map(cell, captions[row]))} |")
    return "\n".join(lines)


def failure_sheet(result: EmbeddedShard) -> str:
    """Returns a Markdown table of the first failed rows with their reasons; empty where nothing failed."""
    rows = list(result.failures)[:_FAILURES]
    if not rows:
        return ""
    lines = ["| row | key | reason | detail |", "|---|---|---|---|"]
    for row, key in zip(rows, _texts(result, "key", rows), strict=True):
        failure = result.failures[row]
        lines.append(
            f"| {row} | {cell(key)} | {failure.reason.value} | {cell(without_secrets(failure.detail))} |"
        )
    more = len(result.failures) - len(rows)
    return "\n".join(lines) + (f"\n\n{more:,} more in the failures file." if more else "")


def _texts(result: EmbeddedShard, name: str, rows: list[int]) -> list[str]:
    column = result.columns.get(name)
    return [str(result.rows[column][row].as_py() or "") if column else "" for row in rows]


def _data_uri(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), reducing_gap=2.0)
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"
