"""The events of a message stream, and what they share with the whole message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxengine import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)
from mlxengine.contract.events import Usage

from ._chat_stream import Piece, written
from ._refusals import Refusal, anthropic_form, encoded

_REASONS = {
    FinishReason.LENGTH: "max_tokens",
    FinishReason.CONTEXT: "model_context_window_exceeded",
    FinishReason.TOOL_CALLS: "tool_use",
}


def stop_of(event: Finished, stops: tuple[str, ...]) -> dict[str, Any]:
    """Why a message ended; ``stops`` are the texts that its request wanted to end at."""
    if event.reason is FinishReason.STOP and event.stop in stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": event.stop}
    return {"stop_reason": _REASONS.get(event.reason, "end_turn"), "stop_sequence": None}


def usage_of(usage: Usage) -> dict[str, Any]:
    """What was counted, in Anthropic's words: what came from the cache is no input there."""
    tokens = TokenUsage.of(usage)
    return {
        "input_tokens": tokens.prompt_tokens - tokens.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached_tokens,
        "output_tokens": tokens.completion_tokens,
    }


class MessageStream:
    """The events of a message: blocks one after the other, each begun and ended.

    Args:
        head: id and model.
        stops: the texts that the request wanted to end at.
    """

    def __init__(self, head: Mapping[str, Any], stops: tuple[str, ...]) -> None:
        self._head = head
        self._stops = stops
        self._index = -1
        self._open: str | None = None  # "text", "thinking", or the id of a call
        self._more: Piece | None = None  # what the open block of text goes on with

    def open(self) -> bytes:
        """The message without its content; the counts come at its end."""
        message = {
            "id": self._head["id"],
            "type": "message",
            "role": "assistant",
            "model": self._head["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(TokenUsage()),
        }
        return _frame("message_start", message=message)

    def beat(self) -> bytes:
        """This dialect's own."""
        return _frame("ping")

    def event(self, event: Event) -> bytes:
        """The frames of an event."""
        if isinstance(event, TextDelta):
            return self._text(event.text) if event.text else b""
        if isinstance(event, ReasoningDelta):
            delta = {"type": "thinking_delta", "thinking": event.text}
            return self._piece("thinking", delta) if event.text else b""
        if isinstance(event, ToolCallDelta):
            return self._call(event.id, event.name, event.arguments)
        if isinstance(event, ToolCall):
            if self._open != event.id:
                return self._call(event.id, event.name, written(event)) + self._close()
            return self._close()
        if isinstance(event, Finished):
            delta = stop_of(event, self._stops)
            end = _frame("message_delta", delta=delta, usage=usage_of(event.usage)) + _frame("message_stop")
            return self._close() + end
        return b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        """This dialect's own event for what goes wrong in the middle."""
        return b"event: error\ndata: " + encoded(anthropic_form(refusal, request_id)) + b"\n\n"

    def _text(self, text: str) -> bytes:
        if self._open == "text" and self._more is not None:
            return self._more(text)
        first = self._piece("text", {"type": "text_delta", "text": text})
        index = self._index
        self._more = Piece(
            lambda text: _frame(
                "content_block_delta", index=index, delta={"type": "text_delta", "text": text}
            )
        )
        return first

    def _piece(self, kind: str, delta: dict[str, Any]) -> bytes:
        begin = b""
        if self._open != kind:
            empty: dict[str, Any] = {"type": kind, kind: ""}
            empty |= {"signature": ""} if kind == "thinking" else {"citations": None}
            begin = self._begin(kind, empty)
        return begin + _frame("content_block_delta", index=self._index, delta=delta)

    def _call(self, identity: str, name: str, arguments: str) -> bytes:
        begin = b""
        if self._open != identity:
            begin = self._begin(identity, {"type": "tool_use", "id": identity, "name": name, "input": {}})
        if not arguments:
            return begin
        delta = {"type": "input_json_delta", "partial_json": arguments}
        return begin + _frame("content_block_delta", index=self._index, delta=delta)

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        end = self._close()
        self._index += 1
        self._open = kind
        return end + _frame("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = self._more = None
        return _frame("content_block_stop", index=self._index)


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encoded({"type": kind, **fields}) + b"\n\n"


__all__ = ["MessageStream", "stop_of", "usage_of"]
