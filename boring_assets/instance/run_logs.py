"""Makes runs log JSON lines where `BORING_LOG_FORMAT` is `json`.

Dagster's own processes have the option `--log-format json`. Runs have no such option: they log through
Dagster's coloured logger unless their configuration has a `loggers` section. That default is replaced here.
"""

import logging

import dagster as dg
from dagster._core.execution import context_creation_job

from boring_assets.monitoring.logs import json_handler

_PACKAGES = ("boring_assets", "partitions", "resources")


def log_runs_as_json() -> None:
    """Makes the runs of this process, and the project's own loggers, write JSON lines."""

    @dg.logger({"log_level": str}, "One JSON object a line on standard error.")
    def json_lines(context: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.getLoggerClass()("dagster", level=context.logger_config["log_level"])
        logger.addHandler(json_handler())
        return logger

    def loggers(instance: dg.DagsterInstance | None) -> list[tuple[dg.LoggerDefinition, dict[str, object]]]:
        level = (instance.python_log_level if instance else None) or "DEBUG"
        return [(json_lines, {"log_level": level})]

    context_creation_job.default_system_loggers = loggers
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [json_handler()], False
