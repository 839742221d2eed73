"""Shared by the commands: the form of their help, and the arguments and options for settings."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from boring_assets.monitoring.logs import set_up_process
from boring_assets.settings import COLUMN_SETTINGS, PREFIX, Settings, load_settings

Decorator = Callable[..., Any]
FILE = click.Path(dir_okay=False, path_type=Path)
_METAVARS = {
    "allowed_url_prefixes": "PREFIX,...",
    "batch_size": "auto|N",
    "duplicate_threshold": "COSINE",
    "exclude": "FILE",
    "max_samples": "N",
    "num_workers": "N",
    "precision": "auto|fp32|bf16|fp16|int8",
    "quiet_seconds": "SECONDS",
    **dict.fromkeys(COLUMN_SETTINGS, "NAME"),
}
_CONFIG = click.option("--config", metavar="FILE", help="TOML file with settings, one `name = value` a line.")


class _Command(click.Command):
    """A command whose help ends in examples, and may explain terms before them."""

    def __init__(
        self, *args: Any, examples: Sequence[str], terms: Sequence[tuple[str, str]], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._examples, self._terms = examples, terms

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the terms and the examples, each example in one line."""
        if self._terms:
            with formatter.section("States"):
                formatter.write_dl(self._terms)
        with formatter.section("Examples"):
            for example in self._examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def command(*examples: str, terms: Sequence[tuple[str, str]] = ()) -> Decorator:
    """Makes a function a command, with examples and terms in its help; `set_input` becomes `set-input`."""
    return click.command(cls=_Command, examples=examples, terms=terms)


def joined(*each: Decorator) -> Decorator:
    """Joins arguments and options into one decorator, in the order of the help."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(each):
            function = one(function)
        return function

    return add


def folder(name: str) -> Decorator:
    """Adds `input_dir` or `output_dir` as an argument; the default is the setting.

    `--input` and `--output` are also accepted.
    """
    word = name.removesuffix("_dir")
    earlier = f"earlier_{name}"

    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.meta[earlier] = value

    def either(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None and ctx.meta[earlier] is not None:
            raise click.UsageError(f"{word.upper()} is given twice: as an argument and as --{word}.")
        return ctx.meta[earlier] if value is None else value

    help = f"{Settings.model_fields[name].description}  [default: {PREFIX}{name.upper()}]"
    position = click.argument(name, metavar=f"[{word.upper()}]", required=False, callback=either, help=help)
    option = click.option(f"--{word}", earlier, hidden=True, is_eager=True, expose_value=False, callback=keep)
    return joined(position, option)


def setting(name: str, *flags: str, **extra: Any) -> Decorator:
    """Adds an option for a setting, with the same name and help.

    Args:
        name: The setting.
        flags: The option's flags, where they differ from the name.
        extra: For `click.option`; `help` replaces the setting's own.
    """
    field = Settings.model_fields[name]
    default = "" if field.default in ("", (), False) else f"  [default: {field.default}]"
    kind: dict[str, Any] = {"is_flag": True, "default": None} if field.annotation is bool else {}
    texts = {"help": f"{field.description}{default}", "metavar": _METAVARS.get(name)}
    return click.option(*(flags or (f"--{name.replace('_', '-')}",)), name, **{**texts, **kind, **extra})


def with_settings(*names: str) -> Decorator:
    """Adds an option for each of some settings, and `--config`."""
    return joined(*map(setting, names), _CONFIG)


def number(*names: str, default: int, least: int = 0, most: int | None = None, help: str) -> Decorator:
    """Adds an option for a whole number, which shows its default."""
    kind = click.IntRange(least, most)
    return click.option(*names, default=default, show_default=True, metavar="N", type=kind, help=help)


INPUT = setting("input_dir", "--input", metavar="URI")
OUTPUT = setting("output_dir", "--output", metavar="URI")
OUTPUT_MODEL = setting("model", help="Model of the texts. By default the one of the embeddings.")
INDEX = joined(
    folder("output_dir"),
    INPUT,
    OUTPUT_MODEL,
    with_settings("pretrained", "device"),
    click.option("--no-update", is_flag=True, help="Do not update the index first."),
)
"""Of the commands that search."""


def server(port: int) -> Decorator:
    """Adds the options of a web server, with a default port."""
    return joined(
        click.option(
            "--host",
            default="127.0.0.1",
            show_default=True,
            help="Address to listen on. Other machines can reach any but a loopback address.",
        ),
        number("--port", default=port, most=65535, help="Port to listen on; 0 uses a free one."),
        click.option(
            "--allowed-host",
            "more_hosts",
            metavar="NAME",
            multiple=True,
            help="Another host name under which the page may be opened; * allows all.",
        ),
    )


def apply(options: dict[str, Any]) -> Settings:
    """Puts the given options into the environment, also for child processes, and returns all settings.

    Args:
        options: Values by setting; None where the option was not given.

    Raises:
        SettingsError: A value is wrong.
    """
    for name, value in options.items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    settings = load_settings()
    set_up_process(settings)
    return settings
