"""Logs as one JSON object a line on standard error, where `BORING_LOG_FORMAT` is `json`."""

import json
import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from boring_assets.errors import SettingsError
from boring_assets.secrets import without_secrets
from boring_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from dagster import DagsterEvent


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object: `time`, `level`, `logger`, `message`, and the Dagster run."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object in one line, without secrets."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = without_secrets(self.formatException(record.exc_info))
        run: Mapping[str, Any] | None = getattr(record, "dagster_meta", None)
        if run is not None:
            line["message"] = without_secrets(run["orig_message"] or "")
            line |= {"run_id": run["run_id"], "job": run["job_name"], "step": run["step_key"]}
            line |= _of_event(run["dagster_event"]) if run["dagster_event"] else {}
        return json.dumps({name: value for name, value in line.items() if value is not None})


def _of_event(event: "DagsterEvent") -> dict[str, Any]:
    """Returns the fields of an event: of its metadata only numbers, since texts can be whole pages."""
    line: dict[str, Any] = {"event": event.event_type_value}
    if event.is_step_materialization:
        materialization = event.step_materialization_data.materialization
        line |= {"asset": materialization.asset_key.to_user_string(), "partition": materialization.partition}
        numbers = {name: value.value for name, value in materialization.metadata.items()}
        line["metadata"] = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    error = getattr(event.event_specific_data, "error", None)
    if error is not None:
        line["error"] = without_secrets(error.to_string())
    return line


def set_up_process(settings: Settings | None = None) -> None:
    """Sets the format of logs, warnings and uncaught errors of this process.

    Args:
        settings: The settings; None reads them, and ignores wrong ones, which the run reports.
    """
    try:
        settings = settings or load_settings()
    except SettingsError:  # the run loads them too, and reports the error in the UI
        return
    if settings.log_format != "json":
        return
    root = logging.getLogger()
    root.handlers = [json_handler()]
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda end: _log_uncaught(end.exc_type, end.exc_value, end.exc_traceback)


def print_error(text: str) -> None:
    """Prints why a command failed: as JSON if this process logs JSON, else in red."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logging.getLogger("boring_assets").error(text)
    else:
        click.secho(f"Error: {text}", fg="red", err=True)


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception_only(kind, error)).strip()
    logging.getLogger("boring_assets").critical(text, exc_info=(kind, error or kind(), trace))


def json_handler() -> logging.Handler:
    """Returns a handler that writes JSON lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler
