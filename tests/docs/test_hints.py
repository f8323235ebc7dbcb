"""What a hint, a docstring or a page tells somebody to type is there: the verb, and each option of it."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mlxengine.cli import _frame
from mlxengine.cli._output import Output

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("core/mlxengine/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
PAGES = [ROOT / "README.md", *ROOT.glob("plugins/*/README.md"), *ROOT.glob("docs/**/*.md")]
# In quotes of code, at a shell's prompt, or after a colon as in "Fetch one: mlxengine pull org/name".
LINES = re.compile(
    r"`mlxengine ([^`]+)`|^\$ (?:.*\| )?mlxengine (.+)$|: mlxengine ([a-z][^`\n]+)", re.MULTILINE
)
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-z])(?![\w-])")
PLACEHOLDER = re.compile(r"VERB|\[|\{|…|\.\.\.|[-A-Z]+$")
# Verbs of the example plugins, which need not be installed.
EXAMPLES = {"markov", "listen"}
OTHERS = {"-u"}  # of ulimit


@cache
def options_of(verb: str) -> frozenset[str] | None:
    """The options of a verb, those of its second words too; ``None`` if there is no such verb."""
    commands = {command.name: command for _, command in _frame.plugin_commands()}
    if verb in _frame.VERBS:
        configure = importlib.import_module(f"mlxengine.cli.{verb}").configure
    elif verb in commands:
        configure = _frame._named(commands[verb].parser or "", verb, "a plugin")
    else:
        return None
    return frozenset(_options(_frame.verb_parser(verb, "", configure, Output())))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def strings(node: ast.AST) -> Iterator[str]:
    """Every string of a source, an f-string as one with ``X`` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for inner in ast.iter_child_nodes(node):
        yield from strings(inner)


def hints(tree: ast.AST) -> Iterator[str]:
    """The strings of every ``hint=…``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield from strings(node.value)


def wrong(text: str) -> list[str]:
    """The command lines in a text that lead nowhere, each with what is not there."""
    found = []
    for match in LINES.finditer(text):
        line = next(filter(None, match.groups())).split("   #")[0]
        verb, _, rest = line.strip("`. ").partition(" ")
        if verb.startswith("-") or PLACEHOLDER.match(verb) or verb in EXAMPLES:
            continue
        known = options_of(verb.rstrip(".,;:"))
        if known is None:
            found.append(f"{line}: no verb {verb!r}")
            continue
        rest = re.sub(r'"[^"]*"|\'[^\']*\'', "TEXT", rest)
        found += [f"{line}: no option {name}" for name in OPTION.findall(rest) if name not in known]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "See `mlxengine hub fetch`.",
        "Fetch it: mlxengine pul org/name.",
        "$ cat x | mlxengine run --no-such -",
    ],
)
def test_a_line_that_leads_nowhere_is_found(text: str) -> None:
    assert len(wrong(text)) == 1


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_line_of_a_page_is_there(path: Path) -> None:
    assert wrong(path.read_text("utf-8")) == []


def test_every_command_line_in_the_sources_is_there() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := [line for text in strings(ast.parse(path.read_text("utf-8"))) for line in wrong(text)])
    }
    assert found == {}


def test_every_variable_that_a_hint_names_is_read_somewhere() -> None:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}
    constants = {text for tree in trees.values() for text in strings(tree)}
    found = {
        (str(path.relative_to(ROOT)), name)
        for path, tree in trees.items()
        for text in hints(tree)
        for name in re.findall(r"MLXENGINE_[A-Z_]+", text)
        if name not in constants
    }
    assert found == set()


def test_every_option_that_a_hint_names_is_one_of_a_verb() -> None:
    commands = [command.name for _, command in _frame.plugin_commands()]
    known = set().union(*(options_of(verb) or () for verb in [*_frame.VERBS, *commands]))
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for text in hints(ast.parse(path.read_text("utf-8")))
        for name in OPTION.findall(text)
        if name not in known | OTHERS
    }
    assert found == set()
