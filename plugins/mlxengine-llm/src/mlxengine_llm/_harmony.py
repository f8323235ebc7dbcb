"""Harmony, the format of gpt-oss: an answer is several messages, each with a header that names its channel.

``<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…``: analysis is
reasoning, commentary to ``functions.NAME`` a call of a tool, the rest is for the reader. The format is
documented in OpenAI's cookbook, "OpenAI harmony response format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mlxengine import Event

from ._parts import Router

_MARKERS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTION = re.compile(r"to=functions\.([^\s<]+)")


def is_harmony(tokenizer: Any) -> bool:
    """Whether a model writes its answers so, by the markers that its tokenizer has."""
    unknown = (None, tokenizer.unk_token_id)
    return all(tokenizer.convert_tokens_to_ids(text) not in unknown for text in _MARKERS)


class HarmonyRouter(Router):
    """As `Router`; a call is one message, so it is whole where its arguments are whole JSON."""

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], tools: Sequence[dict[str, Any]], index: int = 0
    ) -> None:
        from mlx_lm.generate import TextStateMachine

        super().__init__(tokenizer, prompt, tools, index)
        edges = {"header": [("<|message|>", "body")], "body": [(text, "header") for text in _ENDS]}
        self._state = TextStateMachine(edges).make_state("header")
        self._head = ""
        self._loose = ""  # said before any message was opened
        self._heard = False
        self._kind = "normal"
        self._function: str | None = None
        self._follow(prompt)

    def _follow(self, prompt: Sequence[int]) -> None:
        """Begin where the prompt leaves off: in a header, or in a message that it opens."""
        start = self._tokenizer.convert_tokens_to_ids("<|start|>")
        last = next((at for at in reversed(range(len(prompt))) if prompt[at] == start), None)
        if last is not None:
            self.feed(self._tokenizer.decode(list(prompt[last:])))
            self._loose = ""

    def feed(self, text: str) -> list[Event]:
        """The events that are certain now."""
        self._state, segments = self._split(self._state, text)
        found: list[Event] = []
        for at, (state, piece) in enumerate(segments):
            ends = at < len(segments) - 1
            if state == "header":
                self._head += piece
                self._loose += "" if self._heard else piece
                if ends:
                    self._open()
                continue
            if self._function is not None:
                self._call += piece
                found += self._close_call() if ends else []
            elif piece:
                found.append(self._spoken(self._kind, piece))
            if ends:
                self._head, self._function = "", None
        return found

    def finish(self) -> list[Event]:
        """What was held back; an answer without any header is text."""
        state, held = self._state[0], self._state[3]
        if state == "header":
            if not self._heard and "<|channel|>" not in self._loose:
                text = self._loose + held
                return [self._spoken("normal", text)] if text else []
            self._open()
            held = ""
        if self._function is not None:
            return self._break_off(held)
        return [self._spoken(self._kind, held)] if held else []

    def _open(self) -> None:
        self._heard = True
        channel = _CHANNEL.search(self._head)
        named = _FUNCTION.search(self._head) if self._tools else None
        self._function = named[1] if named else None
        self._kind = "reasoning" if channel and channel[1] == "analysis" else "normal"

    def _parsed(self, raw: str) -> Any:
        return {"name": self._function, "arguments": json.loads(raw)}

    def _name(self, _raw: str) -> str:
        return self._function or ""


def final_begins(tokenizer: Any) -> Callable[[Sequence[int]], bool]:
    """Whether the last of an answer's tokens opens the message for the reader."""
    channel, message = map(tokenizer.convert_tokens_to_ids, ("<|channel|>", "<|message|>"))

    def begins(said: Sequence[int]) -> bool:
        if said[-1] != message or channel not in said:
            return False
        last = max(at for at, token in enumerate(said) if token == channel)
        return str(tokenizer.decode(list(said[last + 1 : -1]))).strip().startswith("final")

    return begins


__all__ = ["HarmonyRouter", "final_begins", "is_harmony"]
