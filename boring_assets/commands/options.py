"""Options of the command line that stand for settings."""

import os
from collections.abc import Callable
from typing import Any

import click

from boring_assets.monitoring.logs import set_up_process
from boring_assets.settings import PREFIX, Settings, load_settings


def setting(name: str, *flags: str, **extra: Any) -> Callable[..., Any]:
    """An option that stands for a setting: the same name, the same help.

    Args:
        name: The setting's.
        flags: The option's, where it is called otherwise.
        extra: For `click.option`.
    """
    flag = flags or (f"--{name.replace('_', '-')}",)
    field = Settings.model_fields[name]
    default = field.default if field.default not in ("", ()) else "none"
    return click.option(*flag, name, help=f"{field.description}  [default: {default}]", **extra)


config = click.option(
    "--config", metavar="FILE", help="TOML file with settings, one `name = value` a line.  [default: none]"
)


def apply(options: dict[str, Any]) -> Settings:
    """Puts the options given into the environment, where child processes find them too, and reads all.

    Args:
        options: Values by setting; None where the option was not given.

    Returns:
        All settings.

    Raises:
        SettingsError: A value is wrong.
    """
    for name, value in options.items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    settings = load_settings()
    set_up_process(settings)
    return settings
