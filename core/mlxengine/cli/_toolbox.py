"""The calls that a model makes in a chat: shown, allowed or refused by the person, and run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from ..text.messages import ToolResultPart
from ..text.outputs import ToolCall
from ..text.tools import describe, name_of, run_calls
from ..text.verbs import call_in_line
from ._output import Output, tell

_REFUSED = "The user refused this call."
_BLIND = "(a picture, which this model cannot see)"


class Toolbox:
    """Tools, and what the person said of them; without ``ask`` every call is run."""

    def __init__(self, tools: Sequence[Any], out: Output, *, ask: bool) -> None:
        self.tools = tuple(tools)
        self._out = out
        self._ask = ask
        self._always: set[str] = set()

    def run(self, calls: Sequence[ToolCall], *, sees: bool) -> list[ToolResultPart]:
        """The results of an answer's calls, one after the other; of a refused one, that it was.

        ``sees``: whether the model takes pictures.
        """
        return [self._blind(self._one(call), sees) for call in calls]

    def show(self) -> None:
        """Name the tools, and what each is for."""
        described = [describe(tool) for tool in self.tools]
        functions = [item.get("function", item) for item in described]

        def text() -> None:
            for item in functions:
                self._out.paragraph(f"{item['name']}: {item.get('description') or '–'}", hang="  ")
            if not functions:
                self._out.note("(there are no tools: --tools FILE and --mcp COMMAND give some)")

        self._out.emit({"tools": functions}, text)

    def _one(self, call: ToolCall) -> ToolResultPart:
        say = tell if self._ask else self._out.note
        say(f"  {call_in_line(call)}")
        result = run_calls(self.tools, [call]) if self._allowed(call) else [_refusal(call)]
        text = " ".join(result[0].content.split())
        room = 2 * self._out.width - 12
        cut = text if len(text) <= room else f"{text[:room]}…"
        say(f"  → {'error: ' if result[0].error else ''}{cut}")
        return result[0]

    def _allowed(self, call: ToolCall) -> bool:
        if not self._ask or call.arguments is None or call.name in self._always:
            return True
        if call.name not in map(name_of, self.tools):
            return True  # it is told that there is none
        try:
            said = _input("  run it? [y]es, [N]o, [a]lways this tool: ").strip().lower()
        except EOFError:
            tell("")
            return False
        if said in ("a", "always"):
            self._always.add(call.name)
        return said in ("y", "yes", "a", "always")

    def _blind(self, result: ToolResultPart, sees: bool) -> ToolResultPart:
        if sees or not result.images:
            return result
        return evolve(result, content="\n".join(filter(None, [result.content, _BLIND])), images=())


def _refusal(call: ToolCall) -> ToolResultPart:
    return ToolResultPart(call.id, call.name, _REFUSED, True)


def _input(prompt: str) -> str:
    """A line that does not become one of the conversation's own in the line editor."""
    readline: Any = sys.modules.get("readline")
    if readline is None:
        return input(prompt)
    readline.set_auto_history(False)
    try:
        return input(prompt)
    finally:
        readline.set_auto_history(True)
