"""The commands that the documentation prints."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from isoflop.cli import Command

ROOT = Path(__file__).parents[1]

# What stands for something else, and mere names of commands.
PLACEHOLDER = re.compile(r"…|\.\.\.|[\[|&$]|\b[A-Z]+\b|^isoflop \w+$")


def commands():
    """Return the `isoflop` commands of all pages, those that stand for several left out."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"\\\n\s*", "", page.read_text())
        blocks = re.findall(r"```(?:sh|bash|console)?\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += [" ".join(inline.split()) for inline in re.findall(r"`(isoflop [^`]+)`", text)]
        for line in lines:
            line = line.split(" #")[0].strip().removeprefix("$ ")
            if line.startswith("isoflop ") and not PLACEHOLDER.search(line):
                found.append((page.name, line))
    return sorted(set(found))


def test_there_are_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_of_the_documentation_parses(page, line):
    arguments = shlex.split(line)[1:]
    tyro.cli(Command, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
