"""The chunks of a chat completion, and what they share with the whole one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from mlxengine import (
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
)
from mlxengine.contract.events import Usage
from mlxengine.readonly import thaw

from ._refusals import Refusal, encoded, openai_form

DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"
_HOLE = uuid.uuid4().hex  # a text that no client can say
_REASONS = {
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
}


def finish_reason(reason: FinishReason) -> str:
    """Why an answer ended, in OpenAI's words."""
    return _REASONS.get(reason, "stop")


def usage_of(usage: Usage) -> dict[str, Any]:
    """What was counted, in OpenAI's words."""
    tokens = TokenUsage.of(usage)
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": tokens.total_tokens,
        "prompt_tokens_details": {"cached_tokens": tokens.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning_tokens},
    }


def logprobs_of(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Probabilities of tokens, in OpenAI's words."""
    return {
        "content": [
            {**_logprob(entry), "top_logprobs": [_logprob(item) for item in entry.top]} for entry in entries
        ],
        "refusal": None,
    }


def _logprob(entry: TopLogprob) -> dict[str, Any]:
    stands_for = None if entry.bytes is None else list(entry.bytes)
    return {"token": entry.text, "logprob": finite(entry.logprob), "bytes": stands_for}


def finite(logprob: float) -> float:
    """A log-probability that JSON has a number for; OpenAI's own for one that cannot be is -9999."""
    return max(logprob, -9999.0)


def written(call: ToolCall) -> str:
    """The arguments of a call as text; those that could not be read as the model wrote them."""
    return call.raw if call.arguments is None else json.dumps(thaw(call.arguments))


def frame(value: Any) -> bytes:
    """A value as the data of an event without a name."""
    return b"data: " + encoded(value) + b"\n\n"


class Piece:
    """Frames that differ in one text alone; encoding all the rest for each token is most of a frame's cost.

    Args:
        made: makes the frame of a text.
    """

    def __init__(self, made: Callable[[str], bytes]) -> None:
        self._head, self._tail = made(_HOLE).split(encoded(_HOLE))

    def __call__(self, text: str) -> bytes:
        return self._head + quoted(text).encode() + self._tail


class ChatStream:
    """The chunks of a chat completion.

    Args:
        head: id, created, model.
        n: how many answers there are.
        include_usage: whether a chunk with the usage, and without choices, comes last.
    """

    def __init__(self, head: Mapping[str, Any], n: int, *, include_usage: bool) -> None:
        self._head = {
            "id": head["id"],
            "object": "chat.completion.chunk",
            "created": head["created"],
            "model": head["model"],
        }
        self._n = n
        self._include_usage = include_usage
        self._calls: list[dict[str, int]] = [{} for _ in range(n)]
        self._ended: set[int] = set()
        self._pieces: dict[int, Piece] = {}

    def open(self) -> bytes:
        """Who speaks, for each answer."""
        return b"".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._n))

    def beat(self) -> bytes:
        """A comment: the clients of this dialect read on."""
        return COMMENT

    def event(self, event: Event) -> bytes:
        """The chunks of an event."""
        index = event.index
        if isinstance(event, TextDelta):
            if event.logprobs:
                return self._chunk(index, {"content": event.text}, logprobs_of(event.logprobs))
            return self._text(index, event.text) if event.text else b""
        if isinstance(event, ReasoningDelta):
            if not event.text:
                return b""
            return self._chunk(index, {"reasoning_content": event.text, "reasoning": event.text})
        if isinstance(event, ToolCallDelta):
            return self._call(index, event.id, event.name, event.arguments)
        if isinstance(event, ToolCall):
            if event.id in self._calls[index]:  # its pieces have said all
                return b""
            return self._call(index, event.id, event.name, written(event))
        if isinstance(event, ChoiceFinished):
            return self._end(index, event.reason)
        if isinstance(event, Finished):
            return self._finish(event)
        return b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        """An error, and no end: nobody can take the answer for a whole one."""
        return frame(openai_form(refusal, request_id))

    def _text(self, index: int, text: str) -> bytes:
        piece = self._pieces.get(index)
        if piece is None:
            piece = self._pieces[index] = Piece(lambda text: self._chunk(index, {"content": text}))
        return piece(text)

    def _finish(self, event: Finished) -> bytes:
        ends = [self._end(index, event.reason) for index in range(self._n) if index not in self._ended]
        if self._include_usage:
            ends.append(frame({**self._head, "choices": [], "usage": usage_of(event.usage)}))
        return b"".join([*ends, DONE])

    def _end(self, index: int, reason: FinishReason) -> bytes:
        self._ended.add(index)
        return self._chunk(index, {}, reason=finish_reason(reason))

    def _call(self, index: int, identity: str, name: str, arguments: str) -> bytes:
        known = self._calls[index]
        if identity in known:
            piece: dict[str, Any] = {"index": known[identity], "function": {"arguments": arguments}}
        else:
            known[identity] = len(known)
            function = {"name": name, "arguments": arguments}
            piece = {"index": known[identity], "id": identity, "type": "function", "function": function}
        return self._chunk(index, {"tool_calls": [piece]})

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return frame({**self._head, "choices": [choice]})


__all__ = [
    "COMMENT",
    "DONE",
    "ChatStream",
    "Piece",
    "finish_reason",
    "finite",
    "frame",
    "logprobs_of",
    "usage_of",
    "written",
]
