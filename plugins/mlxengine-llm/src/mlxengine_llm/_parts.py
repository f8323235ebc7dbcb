"""Parting an answer into text, reasoning and tool calls, by the markers that the model's template uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlxengine import Event, ReasoningDelta, TextDelta, ToolCall
from mlxengine.toolkit.sampling import LogitsProcessor

from ._whole import whole_calls


class Router:
    """Takes an answer's text as it comes, and gives events; no text is lost.

    A call that cannot be parsed, or that breaks off, becomes a `ToolCall` with ``arguments=None``, its raw
    text and the reason.

    Args:
        tokenizer: mlx-lm's wrapper, which knows the markers and the parser of calls.
        prompt: token ids of the prompt.
        tools: descriptions of the tools, as JSON-schema function objects; without any, the markers of
            calls are text.
        index: the answer's, for its events.
        thinking: the answer begins within reasoning, see `thinks`.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        tools: Sequence[dict[str, Any]],
        index: int = 0,
        *,
        thinking: bool = False,
    ) -> None:
        from mlx_lm.generate import TextStateMachine, make_text_state_machine

        self._tokenizer = tokenizer
        self._tools = list(tools)
        self._index = index
        self._digest = hashlib.sha256(repr(list(prompt)).encode()).hexdigest()[:8]
        calls = bool(self._tools) and tokenizer.has_tool_calling
        machine = make_text_state_machine(tokenizer if calls else _WithoutCalls(tokenizer))
        self._split = TextStateMachine.split
        first = "reasoning" if thinking else tokenizer.response_initial_state
        self._state = machine.make_state(first or "normal")
        self._call = ""
        self._header: str | None = ""  # until anything is said
        self.calls = 0

    def feed(self, text: str) -> list[Event]:
        """The events that are certain now."""
        self._state, segments = self._split(self._state, text)
        found: list[Event] = []
        for at, (state, piece) in enumerate(segments):
            if state == "tool":
                self._call += piece
                if at < len(segments) - 1:
                    found.extend(self._close_call())
            elif state == "header":
                self._header = None if self._header is None else self._header + piece
            elif piece:
                found.append(self._spoken(state, piece))
        return found

    def finish(self) -> list[Event]:
        """What was held back."""
        state, held = self._state[0], self._state[3]
        self._state = (state, self._state[1], self._state[2], "")
        if state == "tool" or self._call:
            return self._break_off(held)
        if state == "header":  # of a format with headers; a text without any is the answer itself
            held = "" if self._header is None else self._header + held
        return [self._spoken(state, held)] if held else []

    def _spoken(self, state: str, text: str) -> Event:
        self._header = None
        if state == "reasoning":
            return ReasoningDelta(text=text, index=self._index)
        return TextDelta(text=text, index=self._index)

    def _break_off(self, held: str) -> list[Event]:
        """The answer ended before the end marker, of which ``held`` may be the beginning.

        The calls that were whole by then, and the broken one.
        """
        whole = whole_calls(self._tokenizer.tool_parser, self._call)
        self._call, rest = self._call[:whole], self._call[whole:]
        found = self._close_call() if whole else []
        if rest.strip() or not whole:
            raw = rest + held
            found.append(self._one(raw, self._name(raw), None, "the answer ended within the call"))
        return found

    def _close_call(self) -> list[Event]:
        raw, self._call = self._call, ""
        try:
            parsed = self._parsed(raw)
            found = parsed if isinstance(parsed, list) else [parsed]
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair, written as an escape
            return [self._one(raw, item["name"], _arguments(item)) for item in found]
        except Exception as error:  # parsers raise what they like on what a model may write
            return [self._one(raw, self._name(raw), None, f"{type(error).__name__}: {error}")]

    def _parsed(self, raw: str) -> Any:
        """A call, or a list of calls, with ``name`` and ``arguments``; may raise."""
        return self._tokenizer.tool_parser(raw, self._tools)

    def _name(self, raw: str) -> str:
        """The name in a call that cannot be parsed, or nothing."""
        _, found, rest = raw.partition('"name"')
        return rest.split('"')[1] if found and rest.count('"') > 1 else ""

    def _one(self, raw: str, name: str, arguments: Any, error: str | None = None) -> ToolCall:
        self.calls += 1
        self._header = None
        return ToolCall(
            id=f"call_{self._digest}_{self._index}_{self.calls}",
            name=str(name),
            arguments=arguments,
            raw=raw,
            error=error,
            index=self._index,
        )


def _arguments(call: Any) -> dict[str, Any]:
    found = call.get("arguments", call.get("parameters")) or {}
    if isinstance(found, str):
        found = json.loads(found)
    if not isinstance(found, dict):
        raise TypeError(f"arguments are {type(found).__name__}, not an object")
    return found


class _WithoutCalls:
    """A tokenizer without its format of calls, whose markers are text then."""

    has_tool_calling = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.response_transitions = {
            state: [(text, to) for text, to in edges if to != "tool"]
            for state, edges in tokenizer.response_transitions.items()
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def thinks(tokenizer: Any, prompt: Sequence[int], *, continued: bool = False) -> bool:
    """Whether the prompt ends within reasoning that its template has begun.

    A template begins it as the last thing that it writes: a marker further up is somebody's words, unless
    an answer is ``continued`` that may have begun so.
    """
    if not tokenizer.has_thinking:
        return False
    tokens = list(prompt)
    start, end = tokenizer.rfind_think_start(tokens), tokenizer.rfind_think_end(tokens)
    if start <= end:
        return False
    return continued or not tokenizer.decode(tokens[start + len(tokenizer.think_start_tokens) :]).strip()


def thinking_budget(tokenizer: Any, prompt: Sequence[int], budget: int, *, thinking: bool) -> LogitsProcessor:
    """Ends reasoning after ``budget`` tokens by forcing its end token.

    Needs a tokenizer whose end of reasoning is one token.
    """
    start, end = tokenizer.think_start_id, tokenizer.think_end_id
    length = len(prompt)

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        said = tokens[length:]
        if said.size < budget:
            return logits
        begun = mx.array(True) if thinking else mx.any(said == start)
        forced = mx.logical_and(begun, mx.logical_not(mx.any(said == end)))
        only = mx.where(mx.arange(logits.shape[-1]) == end, 0.0, -mx.inf).astype(logits.dtype)
        return mx.where(forced, only[None], logits)

    return process


__all__ = ["Router", "thinking_budget", "thinks"]
