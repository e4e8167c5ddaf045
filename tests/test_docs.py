"""Every command that the documentation prints is one."""

import re
import shlex
from pathlib import Path

import pytest

from isoflop.lab.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text):
    """Yield the lines of code blocks that begin with ``isoflop``, variables replaced, no comments."""
    variables = {}
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if given := re.fullmatch(r'(\w+)="([^"]*)"', line):
                variables[given[1]] = given[2]
            elif line.startswith("isoflop "):
                command = line.partition(" #")[0]
                yield re.sub(r"\$(\w+)", lambda v: variables.get(v[1], v[0]), command)


def mentions(text):
    """Yield the commands in running text."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(isoflop [a-z][^`]*)`", prose):
        yield " ".join(code.split())


def arguments(command):
    """Return the arguments of a printed command, what may be left out included."""
    words = shlex.split(command.replace("[", "").replace("]", ""))
    return [word for word in words[1:] if word != "…"]


PRINTED = [(page.name, line) for page in PAGES for line in blocks(page.read_text())]
MENTIONED = [(page.name, line) for page in PAGES for line in mentions(page.read_text())]


@pytest.mark.parametrize(("page", "line"), dict.fromkeys(PRINTED))
def test_printed_commands(page, line):
    parse(arguments(line))


@pytest.mark.parametrize(("page", "line"), dict.fromkeys(MENTIONED))
def test_mentioned_commands(page, line, capsys):
    words = arguments(line)
    try:
        parse(words)
    except SystemExit:  # prose may leave out what is required
        commands = [word for word in words[:2] if re.fullmatch("[a-z]+", word)]
        options = {word for word in words if word.startswith("--")}
        for known in (commands, [*commands, "inference"], commands[:1]):
            capsys.readouterr()
            with pytest.raises(SystemExit):
                parse([*known, "--help"])
            if options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out)):
                return
        raise


def test_a_page_about_all_runs_of_a_reproduction():
    command = arguments("isoflop report reproduction/runs/*/seed*")
    assert parse(command).out == Path("report.html")


def test_all_are_found():
    assert len(PRINTED) > 40
    assert (
        "reproduce.md",
        "isoflop report reproduction/runs/*/seed*",
    ) in MENTIONED
