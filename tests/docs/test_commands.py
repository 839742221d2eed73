"""Every command of the documents is run, as written but for `workspace.INSTEAD`, or says why it is not.

A page is one script: its blocks run one after another in one shell. Python blocks run with what the earlier
ones of their page have defined. A block that cannot run in a test has `<!-- not run: why -->` above it; it is
parsed, and the options of this project's own commands in it are known.
"""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from boring_assets.cli import main
from tests.docs.pages import PROJECT, blocks, pages
from tests.docs.workspace import INSTEAD, Workspace
from tests.seaweed import Seaweed
from tests.waiting import HANG_SECONDS

LANGUAGES = {"bash", "python"}
NOT_COMMANDS = {"", "toml", "sql", "yaml", "text"}
# `status` and `verify` end with 4 where there is work to do.
START = """\
set -o pipefail
failed() {
    [[ $1 == 4 && $2 =~ boring-assets\\ (status|verify) ]] && return
    echo "FAILED with $1: $2"
    exit 1
}
trap 'failed $? "$BASH_COMMAND"' ERR
"""


def script(page: str, folder: Path) -> str:
    """The blocks of a page as one script; Python blocks go into files."""
    lines, earlier = [START], ""
    for block in blocks(page):
        if block.why_not or block.language not in LANGUAGES:
            continue
        lines.append(f"echo '#### {block.place}, second' $SECONDS")
        if block.language == "python":
            earlier += block.text
            path = folder / f"{Path(page).stem}-{block.line}.py"
            path.write_text(earlier)
            lines.append(f".venv/bin/python {path}")
        else:
            text = block.text
            for written, replacement in INSTEAD.items():
                text = text.replace(written, replacement)
            lines.append(text)
    return "\n".join(lines) if len(lines) > 1 else ""


@pytest.mark.heavy
@pytest.mark.timeout(5 * HANG_SECONDS)
def test_every_command_runs_as_written(tmp_path: Path, s3: Seaweed) -> None:
    workspace = Workspace(tmp_path, s3)
    with workspace.warm():
        for page in pages():
            if commands := script(page, tmp_path):
                done = workspace.run(commands)
                print(done.stdout)
                assert done.returncode == 0, f"{page}: {done.stdout[-6000:]}"
                assert "Traceback" not in done.stdout, f"{page}: {done.stdout[-6000:]}"


@pytest.mark.parametrize("page", pages())
def test_every_block_of_code_is_run_or_marked_with_a_reason(page: str) -> None:
    text = (PROJECT / page).read_text()
    found = list(blocks(page))
    assert text.count("```") == 2 * len(found), f"{page} has a fence that is not read"
    notes = re.findall(r"^ *<!-- *not run", text, re.MULTILINE)
    assert len(notes) == sum(bool(block.why_not) for block in found), f"{page} has a note without its block"
    for block in found:
        assert block.language in LANGUAGES | NOT_COMMANDS, f"{block.place}: write ```bash or ```python"
        if block.language == "bash":
            checked = subprocess.run(
                ["bash", "-n", "-c", block.text], capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, f"{block.place}: {checked.stderr}"
            for line in block.text.replace("\\\n", " ").splitlines():
                check_options(shlex.split(line, comments=True), block.place)
        elif block.language == "python":
            compile(block.text, block.place, "exec")


@pytest.mark.parametrize("page", pages())
def test_commands_in_the_text_have_the_options_that_they_are_given(page: str) -> None:
    text = re.sub(r"```.*?```", "", (PROJECT / page).read_text(), flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        if re.search(r"\b(boring-assets|python -m (benchmarks|torture)\.)", code):
            check_options(code.replace("\n", " ").split(), page)


def check_options(words: list[str], place: str) -> None:
    """Checks that the commands, options and modules of this project in a line exist."""
    for at, word in enumerate(words):
        rest = words[at + 1 :]
        if word.endswith("boring-assets") and rest and re.fullmatch(r"[a-z][a-z-]+", rest[0]):
            command = main.get_command(click.Context(main), rest[0])
            assert isinstance(command, click.Command), f"{place}: there is no command {rest[0]}"
            known = {"--help", *(name for one in command.params for name in one.opts)}
        elif word == "-m" and rest and rest[0].split(".")[0] in ("benchmarks", "torture"):
            source = PROJECT / f"{rest[0].replace('.', '/')}.py"
            assert source.is_file(), f"{place}: there is no module {rest[0]}"
            known = set(re.findall(r"\"(--[\w-]+)\"", source.read_text()))
        else:
            continue
        given = {one.partition("=")[0] for one in rest if re.match(r"--[a-z]", one)}
        assert given <= known, f"{place}: {word} {rest[0]} does not know {given - known}"
