"""The events of a response, numbered, and the response that they build."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from mlxengine import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)
from mlxengine.contract.events import Usage

from ._chat_stream import finite, written
from ._refusals import Refusal, encoded

_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


def usage_of(usage: Usage) -> dict[str, Any]:
    """What was counted, in the words of responses."""
    tokens = TokenUsage.of(usage)
    return {
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tokens.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": tokens.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning_tokens},
        "total_tokens": tokens.total_tokens,
    }


class ResponseStream:
    """Items one after the other, each added, filled and done; ``response`` is what is there so far.

    Args:
        response: the response before its first item.
        request_id: what the items' ids are made of.
    """

    def __init__(self, response: dict[str, Any], request_id: str) -> None:
        self.response = response
        self._id = request_id[4:]
        self._number = 0
        self._item: dict[str, Any] | None = None
        self._key: str | None = None  # "message", "reasoning", or the id of a call

    def open(self) -> bytes:
        """The response exists, and is worked on."""
        return self._whole("response.created") + self._whole("response.in_progress")

    def beat(self) -> bytes:
        """An event that says what is known already: a comment is no sign of life to some clients."""
        return self._whole("response.in_progress")

    def event(self, event: Event) -> bytes:
        """The frames of an event."""
        if isinstance(event, TextDelta):
            return self._text(event)
        if isinstance(event, ReasoningDelta) and event.text:
            begin = self._begin("reasoning")
            self._part["text"] += event.text
            return begin + self._piece("response.reasoning_text.delta", content_index=0, delta=event.text)
        if isinstance(event, ToolCallDelta):
            return self._call(event.id, event.name, event.arguments)
        if isinstance(event, ToolCall):
            known = self._key == event.id
            return (b"" if known else self._call(event.id, event.name, written(event))) + self._close()
        if isinstance(event, Finished):
            return self._finish(event)
        return b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:  # noqa: ARG002 - the response has its own
        """The response failed, with what is there so far."""
        end = self._close("incomplete")
        self.response["status"] = "failed"
        self.response["error"] = {
            "code": _CODES.get(refusal.status, "server_error"),
            "message": refusal.message,
        }
        return end + self._whole("response.failed")

    def take_over(self, begun: bytes, done: Iterable[bytes], last: bytes) -> None:
        """Go on behind another writer, by its first frame, those of items that are done, and its last."""
        self.response = _data(begun)["response"]
        self.response["output"] = [_data(frame)["item"] for frame in done]
        self._number = _data(last)["sequence_number"] + 1

    # -- items --------------------------------------------------------------------------------------------

    def _text(self, event: TextDelta) -> bytes:
        if not event.text and not event.logprobs:
            return b""
        begin = self._begin("message")
        self._part["text"] += event.text
        logprobs = _logprobs(event.logprobs)
        self._part["logprobs"] += logprobs
        return begin + self._piece(
            "response.output_text.delta", content_index=0, delta=event.text, logprobs=logprobs
        )

    def _call(self, identity: str, name: str, arguments: str) -> bytes:
        begin = b""
        if self._key != identity:
            item = {
                "id": self._new_id("fc"),
                "type": "function_call",
                "call_id": identity,
                "name": name,
                "arguments": "",
                "status": "in_progress",
            }
            begin = self._add(identity, item)
        if not arguments:
            return begin
        assert self._item is not None
        self._item["arguments"] += arguments
        return begin + self._piece("response.function_call_arguments.delta", delta=arguments)

    @property
    def _part(self) -> dict[str, Any]:
        assert self._item is not None
        part: dict[str, Any] = self._item["content"][0]
        return part

    def _begin(self, kind: str) -> bytes:
        """An item of a message or of reasoning, unless that is the open one."""
        if self._key == kind:
            return b""
        if kind == "message":
            item: dict[str, Any] = {"id": self._new_id("msg"), "type": "message", "role": "assistant"}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": self._new_id("rs"), "type": "reasoning", "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        begin = self._add(kind, {**item, "status": "in_progress", "content": []})
        assert self._item is not None
        self._item["content"].append(part)
        return begin + self._piece("response.content_part.added", content_index=0, part=part)

    def _add(self, key: str, item: dict[str, Any]) -> bytes:
        end = self._close()
        self._key, self._item = key, item
        self.response["output"].append(item)
        return end + self._frame("response.output_item.added", output_index=self._index, item=item)

    def _close(self, status: str = "completed") -> bytes:
        """The open item is done."""
        item, key = self._item, self._key
        if item is None:
            return b""
        if key == "message":
            part = self._part
            ends = self._piece(
                "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
            ) + self._piece("response.content_part.done", content_index=0, part=part)
        elif key == "reasoning":
            part = self._part
            ends = self._piece(
                "response.reasoning_text.done", content_index=0, text=part["text"]
            ) + self._piece("response.content_part.done", content_index=0, part=part)
        else:
            ends = self._piece(
                "response.function_call_arguments.done", arguments=item["arguments"], name=item["name"]
            )
        item["status"] = status
        ends += self._frame("response.output_item.done", output_index=self._index, item=item)
        self._item = self._key = None
        return ends

    def _finish(self, event: Finished) -> bytes:
        full = event.reason in (FinishReason.LENGTH, FinishReason.CONTEXT)
        end = self._close("incomplete" if full else "completed")
        self.response["status"] = "incomplete" if full else "completed"
        self.response["incomplete_details"] = {"reason": "max_output_tokens"} if full else None
        self.response["completed_at"] = None if full else int(time.time())
        self.response["usage"] = usage_of(event.usage)
        return end + self._whole("response.incomplete" if full else "response.completed")

    # -- frames -------------------------------------------------------------------------------------------

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self.response['output'])}"

    def _whole(self, kind: str) -> bytes:
        return self._frame(kind, response=self.response)

    def _piece(self, kind: str, **fields: Any) -> bytes:
        assert self._item is not None
        return self._frame(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        number = self._number
        self._number += 1
        data = encoded({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _data(frame: bytes) -> dict[str, Any]:
    [line] = (line for line in frame.splitlines() if line.startswith(b"data: "))
    found: dict[str, Any] = json.loads(line[6:])
    return found


def _logprobs(entries: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [{**_logprob(entry), "top_logprobs": [_logprob(item) for item in entry.top]} for entry in entries]


def _logprob(entry: Any) -> dict[str, Any]:
    stands_for = entry.text.encode("utf-8", "replace") if entry.bytes is None else entry.bytes
    return {"token": entry.text, "logprob": finite(entry.logprob), "bytes": list(stands_for)}


__all__ = ["ResponseStream", "usage_of"]
