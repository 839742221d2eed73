"""Shared by the commands: the form of their help, and the arguments and options for settings."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from boring_assets.monitoring.logs import set_up_process
from boring_assets.settings import PREFIX, Settings, load_settings

Decorator = Callable[..., Any]
LOOPBACK = "127.0.0.1"


class Command(click.Command):
    """A command whose help ends in examples, and may explain terms before them."""

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str],
        terms: Sequence[tuple[str, str]] = (),
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.examples, self.terms = examples, terms

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the terms and the examples, each example in one line."""
        if self.terms:
            with formatter.section("States"):
                formatter.write_dl(self.terms)
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def folder(name: str, *, required: bool = True) -> Decorator:
    """Adds the input or the output: a positional argument if the command needs it, else an option.

    The default is the setting. `--input` and `--output` are also accepted.

    Args:
        name: `input_dir` or `output_dir`.
        required: Whether the command cannot work without it.
    """
    word = name.removesuffix("_dir")
    if not required:
        return setting(name, f"--{word}", metavar="URI")
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
    return lambda command: position(option(command))


def setting(name: str, *flags: str, **extra: Any) -> Decorator:
    """Adds an option for a setting, with the same name and help.

    Args:
        name: The setting.
        flags: The option's flags, where they differ from the name.
        extra: For `click.option`; `help` replaces the setting's own.
    """
    field = Settings.model_fields[name]
    default = "" if field.default in ("", (), False) else f"  [default: {field.default}]"
    flags = flags or (f"--{name.replace('_', '-')}",)
    return click.option(*flags, name, **{"help": f"{field.description}{default}", **extra})


config = click.option("--config", metavar="FILE", help="TOML file with settings, one `name = value` a line.")


def columns(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that name the input's columns."""
    for name in ("url_column", "caption_column", "key_column", "image_column"):
        command = setting(name, metavar="NAME")(command)
    return command


def index_of(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of commands that search: output, input, model, `--no-update`."""
    for option in (
        click.option("--no-update", is_flag=True, help="Do not update the index first."),
        config,
        setting("device"),
        setting("pretrained"),
        setting("model", help="Model of the query. By default the one that made the embeddings."),
        folder("input_dir", required=False),
        folder("output_dir"),
    ):
        command = option(command)
    return command


def server(port: int) -> Decorator:
    """Adds the options of a web server, with a default port."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--allowed-host",
                "allowed_hosts",
                metavar="NAME",
                multiple=True,
                help="Another host name under which the page may be opened; * allows all.",
            ),
            click.option(
                "--port",
                default=port,
                show_default=True,
                metavar="N",
                type=click.IntRange(0, 65535),
                help="Port to listen on; 0 uses a free one.",
            ),
            click.option(
                "--host",
                default=LOOPBACK,
                show_default=True,
                help="Address to listen on. Other machines can reach any but a loopback address.",
            ),
        ):
            command = option(command)
        return command

    return add


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
