"""How a model speaks: the marks of its reasoning, the headers of its messages, its notation of tool calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from attrs import field, frozen

from ._formats import XTML, Format, format_named, format_of

_THINK = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
)
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")
_TO_FUNCTION = re.compile(r"to=functions\.([^\s<]+)")


@frozen(kw_only=True)
class Headers:
    """Messages with headers, of which an answer has several.

    Args:
        message: ends a header.
        ends: end a message.
        starts: a turn of the assistant, as the prompt may end with it.
        spoken: what a header means: ``"reasoning"``, ``"text"``, or ``"call NAME"``.
        thought: headers of what may be said before the answer.
        thought_end: what ends that, and begins the next message.
        answer: headers of the text for the reader.
        call: the header of a call, ``NAME``, up to its piece.
        call_end: ends the message of a call, where that does not end the answer.
        named: a call's name stands in its header, and the message is its arguments.
    """

    message: str
    ends: tuple[str, ...]
    starts: str
    spoken: Callable[[str], str]
    thought: tuple[str, ...]
    thought_end: str
    answer: tuple[str, ...]
    call: str
    call_end: str
    named: bool


def _harmony(header: str) -> str:
    function = _TO_FUNCTION.search(header)
    channel = re.search(r"<\|channel\|>\s*(\w+)", header)
    if function:
        return f"call {function[1]}"
    return "reasoning" if channel and channel[1] == "analysis" else "text"


def _muse(header: str) -> str:
    return "reasoning" if header.rstrip().endswith("to=self") else "text"


HARMONY = Headers(
    message="<|message|>",
    ends=("<|end|>", "<|call|>", "<|return|>", "<|start|>"),
    starts="<|start|>assistant",
    spoken=_harmony,
    thought=("<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>"),
    thought_end="<|end|><|start|>assistant",
    answer=("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    call="<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>",
    call_end="<|call|>",
    named=True,
)
"""gpt-oss: analysis is reasoning, commentary to a function a call, the rest is for the reader.

See OpenAI's cookbook, "OpenAI harmony response format".
"""

MUSE = Headers(
    message="<|message|>",
    ends=("<|eom|>", "<|eot|>"),
    starts="<|start|>assistant",
    spoken=_muse,
    thought=("to=self<|message|>",),
    thought_end="<|eom|><|start|>assistant ",
    answer=("to=user<|message|>",),
    call="to=NAME<|message|>",
    call_end="",
    named=False,
)
"""Muse Spark: what is said to itself is reasoning; calls have marks of their own within a message."""


@frozen(kw_only=True)
class Dialect:
    """How one model speaks.

    Args:
        tokenizer: of transformers, or a wrapper that passes attributes on.
        calls: its notation of tool calls, or ``None``.
        think: the marks around its reasoning, or ``None``.
        think_ids: the tokens of these.
        silent: marks that stand around the answer and are no part of it, the first before, others behind.
        headers: of its messages, or ``None``.
    """

    tokenizer: Any = field(repr=False)
    calls: Format | None = None
    think: tuple[str, str] | None = None
    think_ids: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    silent: tuple[str, ...] = ()
    headers: Headers | None = None

    @classmethod
    def of(cls, tokenizer: Any, template: str = "") -> Dialect:
        """How the model of a tokenizer and a chat template speaks."""
        vocabulary = set(tokenizer.get_vocab())
        if vocabulary.issuperset(_HARMONY):
            return cls(tokenizer=tokenizer, headers=HARMONY)
        calls = format_of(template, vocabulary)
        settings = getattr(tokenizer, "init_kwargs", {})
        named = format_named(str(settings.get("tool_parser_type")))
        if named is not None and (calls is None or calls.read is not named.read):
            calls = named
        xtml = vocabulary.issuperset(XTML)
        think = next((pair for pair in _THINK if vocabulary.issuperset(pair)), None)
        if think is None and vocabulary.issuperset(("<|channel>", "<channel|>")):
            think = ("<|channel>thought", "<channel|>")
        if think is None and xtml:
            think = ("<|open|>think<|sep|>", "<|close|>think<|sep|>")
        muse = calls is not None and calls.name == "muse_spark"
        return cls(
            tokenizer=tokenizer,
            calls=calls,
            think=None if muse else think,
            think_ids=((), ()) if think is None or muse else tuple(_ids(tokenizer, mark) for mark in think),  # type: ignore[arg-type]
            silent=(
                ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>")
                if xtml
                else ()
            ),
            headers=MUSE if muse else None,
        )

    @property
    def named(self) -> bool:
        """Whether it has a notation of tool calls."""
        return self.calls is not None or self.headers is not None

    @property
    def reasons(self) -> bool:
        """Whether its reasoning is marked."""
        return self.think is not None or self.headers is not None

    @property
    def abilities(self) -> frozenset[str]:
        """What of it is told as a model's capabilities."""
        found = {"tools": self.named, "reasoning": self.reasons}
        return frozenset(name for name, has in found.items() if has)

    @property
    def bounded(self) -> bool:
        """Whether the length of its reasoning can be bounded."""
        return all(self.think_ids)

    @property
    def begins_with_a_token(self) -> bool:
        """Whether the first token of its reasoning tells that it comes: its marks are one token each."""
        return tuple(map(len, self.think_ids)) == (1, 1)

    def thinks(self, prompt: Sequence[int], *, continued: bool = False) -> bool:
        """Whether a prompt ends within reasoning that its template has begun.

        A template begins it as the last thing that it writes: a mark further up is somebody's words, unless
        an answer is ``continued`` that may have begun so.
        """
        if self.think is None:
            return False
        tokens = list(prompt)
        start, end = (_last(tokens, ids) for ids in self.think_ids)
        if start <= end:
            return False
        return continued or not self.tokenizer.decode(tokens[start + len(self.think_ids[0]) :]).strip()

    def heading(self, prompt: Sequence[int]) -> str:
        """The beginning of a message, header or more, with which a prompt ends."""
        if self.headers is None:
            return ""
        start = self.tokenizer.convert_tokens_to_ids("<|start|>")
        last = _last(list(prompt), (start,))
        return str(self.tokenizer.decode(list(prompt[last:]))) if last >= 0 else ""


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _last(tokens: list[int], run: Sequence[int]) -> int:
    """Where the last of the runs of tokens begins, or -1. Prompts are long, and mostly have none."""
    size, backwards, start = len(run), tokens[::-1], 0
    while True:
        try:
            start = backwards.index(run[-1], start) + 1
        except ValueError:
            return -1
        first = len(tokens) - start + 1 - size
        if first >= 0 and tokens[first : first + size] == list(run):
            return first


__all__ = ["HARMONY", "MUSE", "Dialect", "Headers"]
