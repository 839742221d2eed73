"""What the commands share: the form of their help, and the arguments and options that stand for settings."""

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
        """Writes the terms and the examples, each example on a line of its own, however long."""
        if self.terms:
            with formatter.section("States"):
                formatter.write_dl(self.terms)
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def folder(name: str, *, required: bool = True) -> Decorator:
    """The input or the output: a positional argument where a command needs it, else an option.

    Left out, the setting is used. The option of earlier versions (`--input`, `--output`) is still accepted.

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
    """An option that stands for a setting: the same name, the same help.

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
    """Adds the options that open a search index: output, input of the pictures, model, `--no-update`."""
    for option in (
        click.option("--no-update", is_flag=True, help="Use the index as it is, without new shards."),
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
    """Adds the options of a web page: address, port, names."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--allowed-host",
                "allowed_hosts",
                metavar="NAME",
                multiple=True,
                help="Another host name that the page may be opened by; * allows all.",
            ),
            click.option(
                "--port",
                default=port,
                show_default=True,
                metavar="N",
                type=click.IntRange(0, 65535),
                help="Port to listen on; 0 takes a free one.",
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
    """All settings, with the options given put into the environment, where child processes find them too.

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
