"""Has runs log JSON lines, where `BORING_LOG_FORMAT` is `json`.

Dagster's own processes have an option for that, `--log-format json`. A *run* has none: without a `loggers`
section in its run configuration it always logs through Dagster's coloured logger, which is replaced here.
"""

import logging

import dagster as dg
from dagster._core.execution import context_creation_job

from boring_assets.monitoring.logs import json_handler

_OURS = ("boring_assets", "partitions", "resources")


def log_runs_as_json() -> None:
    """Has the runs of this process, and the project's own loggers, write JSON lines."""

    @dg.logger({"log_level": str}, "One JSON object a line on standard error.")
    def json_lines(context: dg.InitLoggerContext) -> logging.Logger:
        made = logging.getLoggerClass()("dagster", level=context.logger_config["log_level"])
        made.addHandler(json_handler())
        return made

    def loggers(instance: dg.DagsterInstance | None) -> list[tuple[dg.LoggerDefinition, dict[str, object]]]:
        level = (instance.python_log_level if instance else None) or "DEBUG"
        return [(json_lines, {"log_level": level})]

    # Dagster takes no logger of a code location unless each run's own configuration names it.
    context_creation_job.default_system_loggers = loggers
    for name in _OURS:
        log = logging.getLogger(name)
        log.handlers, log.propagate = [json_handler()], False
