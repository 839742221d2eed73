"""The command line `boring-assets`. Each section of its help is a module of `boring_assets.commands`.

The modules are imported when one of their commands is called.
"""

import multiprocessing
import os
import re
import sys
from importlib import import_module
from typing import Any

import click

from boring_assets.commands import exit_codes
from boring_assets.errors import BoringError
from boring_assets.wording import plain

GROUPS = {
    "Embed": {
        "embed": "Embed the new and changed shards of a dataset",
        "status": "Show which shards are done, new, changed or failed",
        "register": "Register new shards as partitions without embedding them",
    },
    "Check": {
        "failures": "Show which samples were not embedded, and why",
        "retry": "Embed failed images again, and only those",
        "verify": "Check every byte of an output, and repair it",
        "prune": "Remove what left the input or is excluded",
        "set-input": "Record that the input of an output was moved",
    },
    "Search": {
        "search": "Find images by text, by image or by key",
        "serve": "Open a web page to search in",
        "map": "Open a map of the embeddings",
        "index": "Update the search index",
        "near-duplicates": "Find groups of near-identical images",
        "clip-scores": "Score how well each caption fits its image",
        "label": "Compute labels and scores from the embeddings",
    },
    "Data": {
        "sample-data": "Write shards of generated images to try things out",
        "list-pictures": "List a folder's image files in shards, ready to embed",
        "export": "Write the embeddings in another tool's format",
        "cost": "Estimate hours, cost and storage for a number of images",
    },
}
"""The commands by section; `near-duplicates` is the function `near_duplicates` of the module `search`."""

_EXIT_CODES = (
    "Exit codes: 0 done, 1 error, 2 wrong usage, 3 some shards failed, 4 there is work to do (status, "
    "verify, prune), 130 interrupted."
)
_INTERRUPTED = "Interrupted. What is committed stays; the same command does the rest."


class _Commands(click.Group):
    """Imports a command when it is called; prints the project's own errors and Ctrl-C as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in GROUPS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for section, commands in GROUPS.items():
            if cmd_name in commands:
                module = import_module(f"boring_assets.commands.{section.lower()}")
                command: click.Command = getattr(module, cmd_name.replace("-", "_"))
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(15), text) for name, text in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BoringError as error:
            from boring_assets.monitoring.logs import print_error

            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            print_error(plain(_name_options(str(error), command)))
            sys.exit(exit_codes.ERROR)
        except KeyboardInterrupt:
            click.echo(_INTERRUPTED, err=True)
            sys.stdout.flush()
            for child in multiprocessing.active_children():
                child.kill()
            # The engine's threads still run; a normal exit below them aborts in native code.
            os._exit(exit_codes.INTERRUPTED)


def _name_options(text: str, command: click.Command | None) -> str:
    """The text with the command's option after each variable that it names: `BORING_MODEL (--model)`."""
    from boring_assets.settings import PREFIX

    options = {
        str(one.name): one.opts[0] if isinstance(one, click.Option) else one.human_readable_name.strip("[]")
        for one in (command.params if command else [])
    }

    def with_option(match: re.Match[str]) -> str:
        option = options.get(match[1].lower())
        return f"{match[0]} ({option})" if option else match[0]

    return re.sub(rf"\b{PREFIX}([A-Z_]+)\b(?! \(|=)", with_option, text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.version_option(package_name="boring_assets")
def main() -> None:
    """CLIP embeddings of image shards, kept up to date by Dagster.

    `boring-assets COMMAND -h` shows what a command does, with examples.
    """


if __name__ == "__main__":
    main()
