"""Parting an answer's text into text, reasoning and tool calls, as it comes: nothing is lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from ...contract.events import Event
from ...text.outputs import ReasoningDelta, TextDelta, ToolCall, ToolCallDelta
from ._dialect import Dialect
from ._formats import Format
from ._readers import one_object
from ._source import MORE, BrokenOffError, Named, Reading, Source, Whole, beginning, first


class Router:
    """Takes an answer's text piece by piece, and gives events.

    A call that cannot be read, or that breaks off, becomes a `ToolCall` with ``arguments=None``, its raw
    text and the reason. Blank space behind a call, up to the next one or the end, belongs to the notation.

    Args:
        dialect: how the model speaks.
        calls: the notation of its calls, if there are tools.
        tools: the schemas of their arguments by name; without any, the marks of calls are text.
        prompt: token ids.
        index: the answer's, for its events.
        thinking: the answer begins within reasoning.
        deltas: calls are told as they are written, not only when they are whole.
        bound: a grammar holds behind the reasoning, within which there are no calls then.
    """

    def __init__(
        self,
        dialect: Dialect,
        calls: Format | None,
        tools: Mapping[str, Mapping[str, Any]],
        prompt: Sequence[int] = (),
        index: int = 0,
        *,
        thinking: bool = False,
        deltas: bool = True,
        bound: bool = False,
    ) -> None:
        self._calls = calls if tools else None
        self._headers = dialect.headers
        self._tools = tools
        self._index = index
        self._deltas = deltas
        self._prompt = prompt
        self._marks = self._edges(dialect, bound=bound)
        self._held = ""
        self._state = "reasoning" if thinking else "header" if self._headers else "text"
        self._header = ""
        self._loose = ""  # what stands in a header before any message was opened
        self._heard = False
        self._source = Source()
        self._reading: Reading | None = None
        self._closes: tuple[str, ...] = ()
        self._begun = 0  # where the call that is read begins in the source
        self._name = ""
        self._json: list[str] = []
        self._fault = ""  # of a call whose end is waited for
        self._gap: str | None = None  # blank space right behind a call
        self.calls = 0
        self.broken = False  # whether the last call is
        if heading := dialect.heading(prompt):
            self.feed(heading)
            self._loose = ""

    def _edges(self, dialect: Dialect, *, bound: bool) -> dict[str, dict[str, str]]:
        """What each mark leads to, by what is being said."""
        text, reasoning = dict.fromkeys(dialect.silent, "text"), dict[str, str]()
        if dialect.think is not None:
            start, end = dialect.think
            text[start], reasoning[end] = "reasoning", "text"
        if self._headers is not None:
            ends = dict.fromkeys(self._headers.ends, "header")
            text, reasoning = text | ends, reasoning | ends
        if self._calls is not None:
            text[self._calls.opens] = "call"
            if not bound:
                reasoning[self._calls.opens] = "call"
        header = {self._headers.message: "message"} if self._headers else {}
        return {"text": text, "reasoning": reasoning, "header": header}

    def feed(self, text: str) -> list[Event]:
        """The events that are certain now."""
        self._held += text
        found: list[Event] = []
        while self._held:
            if self._state in ("call", "fault"):
                if not self._read(found):
                    break
                continue
            marks = self._marks[self._state]
            at, mark = first(self._held, list(marks))
            sure = at if mark else len(self._held) - beginning(self._held, list(marks))
            self._say(self._held[:sure], found)
            if not mark:
                self._held = self._held[sure:]
                break
            self._held = self._held[at + len(mark) :]
            self._enter(marks[mark], mark)
        return found

    def finish(self) -> list[Event]:
        """What was held back."""
        found: list[Event] = []
        while self._state in ("call", "fault"):
            self._source.ended = True
            if self._read(found):
                found += self.feed("")
        if self._headers and self._state == "header":
            text = self._loose + self._held
            header = self._header + self._held
            if not self._heard and "<|channel|>" not in text:
                self._state, self._held = "text", text  # of a model that writes no header this time
            elif self._tools and (said := self._headers.spoken(header)).startswith("call "):
                self._open(lambda source: one_object(said.removeprefix("call "), ())(source), ())
                self._state = "call"
                self._source.ended = True
                self._held = ""
                self._read(found)
        self._say(self._held, found)
        self._held = ""
        return found

    def _say(self, text: str, found: list[Event]) -> None:
        if self._state == "header":
            self._header += text
            self._loose += "" if self._heard else text
        elif text and self._state == "reasoning":
            found.append(ReasoningDelta(text=text, index=self._index))
        elif text:
            text = (self._gap or "") + text
            if self._gap is not None and text.isspace():
                self._gap = text
                return
            self._gap = None
            found.append(TextDelta(text=text, index=self._index))

    def _enter(self, state: str, mark: str) -> None:
        if state == "message":
            assert self._headers is not None
            state, _, name = self._headers.spoken(self._header).partition(" ")
            self._heard = True
            if state == "call" and self._tools:
                ends = self._headers.ends
                self._open(one_object(name, ends), ends)
            elif state == "call":
                state = "text"
        elif state == "call":
            assert self._calls is not None
            form = self._calls
            self._held = mark + self._held if form.kept else self._held
            self._open(
                lambda source: form.read(source, form.closes, self._tools), tuple(filter(None, [form.closes]))
            )
        self._header = ""
        self._state = state

    def _open(self, reader: Callable[[Source], Reading], closes: tuple[str, ...]) -> None:
        self._source = Source()
        self._reading = reader(self._source)
        self._closes = closes
        self._begun = 0
        self._name, self._json, self._fault = "", [], ""

    def _read(self, found: list[Event]) -> bool:
        """Read on in a piece of calls; whether it is over, and what follows it is held."""
        source = self._source
        source.text += self._held
        self._held = ""
        try:
            if self._fault:
                raise ValueError(self._fault)
            assert self._reading is not None
            for item in self._reading:
                if item is MORE:
                    return False
                self._take(item, found)
            self._held = source.text[source.at :]
        except (ValueError, RecursionError, OverflowError) as error:
            if not self._give_up(error, found):
                return False
        self._state = "header" if self._headers and self._headers.named else "text"
        self._gap = ""
        return True

    def _take(self, item: Any, found: list[Event]) -> None:
        if isinstance(item, Named):
            self.calls += 1
            self._name, self._json = item.name, []
        elif isinstance(item, Whole):
            arguments = json.loads("".join(self._json))
            if not isinstance(arguments, dict):
                raise ValueError(f"arguments are {type(arguments).__name__}, not an object")
            # Nothing that JSON has no form of: infinity (1e999), half of a surrogate pair.
            json.dumps([self._name, arguments], ensure_ascii=False, allow_nan=False).encode()
            found.append(self._call(self._source.at, arguments))
            self._begun, self._name = self._source.at, ""
            return
        else:
            self._json.append(item)
        if self._deltas and item != "":
            text = item if isinstance(item, str) else ""
            found.append(ToolCallDelta(id=self._id, name=self._name, arguments=text, index=self._index))

    def _give_up(self, error: Exception, found: list[Event]) -> bool:
        """What cannot be read goes up to the mark that closes the piece, once that is there."""
        source = self._source
        at, mark = first(source.text, self._closes, self._begun)
        if not mark and not source.ended:
            self._fault = str(error)
            self._state = "fault"
            return False
        raw = source.text[self._begun : at]
        rest = raw.strip(" \t\r\n,]")  # what may stand behind a whole call in its piece
        over = isinstance(error, BrokenOffError) and not mark and self._begun
        if not (over and not self._name and any(item.startswith(rest) for item in (*self._closes, ""))):
            if not self._name:
                self.calls += 1
            found.append(self._call(at, None, self._fault or str(error)))
        self._held = source.text[at + len(mark) :]
        return True

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(repr(list(self._prompt)).encode()).hexdigest()[:8]

    @property
    def _id(self) -> str:
        return f"call_{self._digest}_{self._index}_{self.calls}"

    def _call(self, end: int, arguments: dict[str, Any] | None, error: str | None = None) -> ToolCall:
        self.broken = error is not None
        return ToolCall(
            id=self._id,
            name=self._name,
            arguments=arguments,
            raw=self._source.text[self._begun : end],
            error=error,
            index=self._index,
        )


__all__ = ["Router"]
