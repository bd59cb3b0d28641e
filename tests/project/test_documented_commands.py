"""Every command in a block of the documentation is run, or read as its program reads it.

Commands that only look are run. Snakemake's are planned by its own parser and our graph: scale, settings and targets.
Others are parsed down to their last option. CI runs the first commands of README.md themselves.
"""

import re
import shlex
import subprocess
from functools import cache
from itertools import dropwhile

import click
import pytest
import typer
from fixtures.command_line import status_of
from project.test_docs import NAMES, ROOT
from snakemake.cli import get_argument_parser

from budgeted_lora.commands.app import app
from budgeted_lora.config.scale import Config
from budgeted_lora.planning.start import targets_of
from budgeted_lora.workflow.graph import load_graph

LOOKS = ("plan", "cells", "structures")  # budgeted-lora's commands that only read the checkout
LONG = {"--calibrate"}  # they train
ADDED = ("final_rate", "before_compression")  # what CONTRIBUTING.md tells how to add
ENDINGS = (";", "&&", "|", ">", "2>")


@cache
def commands() -> list[tuple[str, str]]:
    """Page and command, for each line of a block of shell; a line that ends with a backslash goes on."""
    found = []
    for page in NAMES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^ *```(?:sh|bash|console)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                words = list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
                while words:
                    end = next((place for place, word in enumerate(words) if word in ENDINGS), len(words))
                    found.append((page, shlex.join(words[:end])))
                    words = words[end + 1 :] if end < len(words) and words[end] in (";", "&&") else []
    return [pair for pair in dict.fromkeys(found) if pair[1]]


def of(*programs: str) -> pytest.MarkDecorator:
    """The commands of a program, without it; each once, whatever pages have it."""
    texts = dict.fromkeys(
        shlex.join(words[len(programs) :])
        for _, text in commands()
        if (words := shlex.split(text))[: len(programs)] == list(programs)
    )
    assert texts, programs
    return pytest.mark.parametrize("text", texts)


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command of budgeted-lora that words name, and its arguments."""
    found: click.Command = typer.main.get_command(app)
    while hasattr(found, "commands"):
        found, words = found.commands[words[0]], words[1:]
    return found, words


@of("budgeted-lora")
def test_commands_of_ours(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(text)
    if words == ["--help"]:
        words = []
    if any(name in text for name in ADDED):
        return
    if words and words[0] in LOOKS and LONG.isdisjoint(words):
        monkeypatch.chdir(ROOT)
        assert status_of(words) == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    elif words:
        command, arguments = command_of(words)
        command.make_context(text, arguments)


@of("snakemake")
def test_commands_of_snakemake(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = get_argument_parser(profiles=[]).parse_args(shlex.split(text))
    config = dict(word.partition("=")[::2] for word in asked.config or [])
    graph = load_graph(f"config/{config.pop('scale', 'mini')}.yaml", {})
    assert {key for key in config if key not in Config.model_fields} == set()
    assert set(asked.targets) - {*targets_of(graph), *ADDED} == set()


@of("make")
def test_commands_of_make(text: str) -> None:
    done = subprocess.run(["make", "--dry-run", *shlex.split(text)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_else_is_ours() -> None:
    """Other programs are the system's or other projects'; files of ours that a block runs exist."""
    programs = {shlex.split(text)[0] for _, text in commands()}
    ours = {program for program in programs if "/" in program and not program.startswith(".venv/")}
    assert {program for program in ours if not (ROOT / program).exists()} == set()
