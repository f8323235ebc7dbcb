"""OpenAI's completions of raw text: prompts without a chat template, several at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from mlxengine import (
    AsyncTextHandle,
    ChoiceFinished,
    Event,
    Finished,
    GenerateParams,
    TextDelta,
    TextReply,
    TextRequest,
    TokenLogprob,
)

from ._answers import Asked, Dialect
from ._asking import BEYOND, SAMPLING, parameters, seed_of
from ._chat_stream import DONE, finish_reason, finite, frame, usage_of
from ._fields import Fields, Table, callers, honoured, refused
from ._refusals import Refusal, openai_form

TABLE = Table(
    "OpenAI completions",
    "/v1/completions",
    (
        honoured("model", "A served model's name or alias; left out, it is the first one."),
        honoured(
            "prompt",
            "A text, token ids, or several of either: their answers follow each other.",
            "prompt prompt_tokens",
        ),
        refused("best_of", "Ask for n answers and choose.", 1),
        refused("echo", "The prompt is yours already; a score of it is POST /v1/engine.", False),
        honoured("frequency_penalty"),
        honoured("logit_bias", "Token ids of the model's own tokenizer."),
        honoured("logprobs", "That many alternatives to each token.", ours="top_logprobs"),
        honoured("max_tokens", "null is the model's own default, not 16."),
        honoured("n"),
        honoured("presence_penalty"),
        honoured("seed"),
        honoured("stop"),
        honoured("stream"),
        honoured("stream_options", "include_usage; what pads a stream is the caller's."),
        refused("suffix", "Nothing is filled in between.", ""),
        honoured("temperature", "null is the model's own default, not 1."),
        honoured("top_p"),
        callers("user", "Nothing is sent anywhere."),
    ),
    BEYOND,
)


def read(body: dict[str, Any], request_id: str) -> Asked:
    """A body as what the engine is asked.

    Raises:
        Refusal: 400, with the field that is wrong.
    """
    unknown = TABLE.check(body)
    fields = Fields(body)
    alternatives = fields.integer("logprobs")
    bias = fields.object("logit_bias")
    params = parameters(
        fields,
        SAMPLING,
        seed=seed_of(fields),
        logprobs=None if alternatives is None else True,
        top_logprobs=alternatives,
        logit_bias=None if bias is None else bias.token_numbers(),
    )
    requests = tuple(_requests(fields, params))
    streamed = fields.flag("stream") or False
    include = fields.include_usage(streamed)
    model = fields.text("model")
    head = {
        "id": f"cmpl-{request_id[4:]}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model or "",
    }
    count = len(requests) * params.n
    return Asked(
        model=model,
        requests=requests,
        handle=AsyncTextHandle,
        gives="text",
        whole=lambda events: _whole(events, head, params.logprobs),
        writer=_Stream(head, count, include_usage=include) if streamed else None,
        unknown=unknown,
    )


def _requests(fields: Fields, params: GenerateParams) -> Iterable[TextRequest]:
    prompt = fields.data.get("prompt")
    if isinstance(prompt, str):
        yield TextRequest(prompt=prompt, params=params)
        return
    items = fields.items("prompt")
    if not items:
        raise fields.wrong("prompt", "prompt is missing.", "missing_value")
    for item in [items] if _are_ids(items) else items:
        if isinstance(item, str):
            yield TextRequest(prompt=item, params=params)
        elif _are_ids(item):
            yield TextRequest(prompt_tokens=item, params=params)
        else:
            raise fields.wrong("prompt", "prompt is a text, token ids, or a list of these.", "invalid_type")


def _are_ids(items: Any) -> bool:
    return (
        isinstance(items, list)
        and bool(items)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in items)
    )


def _whole(events: list[Event], head: Mapping[str, Any], logprobs: bool) -> dict[str, Any]:
    reply = TextReply.of(events)
    choices = [
        {
            "index": number,
            "text": item.text,
            "logprobs": _logprobs(item.logprobs, 0) if logprobs else None,
            "finish_reason": finish_reason(item.finish_reason),
        }
        for number, item in enumerate(reply.choices or (reply,))
    ]
    return {**head, "choices": choices, "usage": usage_of(reply.usage)}


def _logprobs(entries: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        found["tokens"].append(entry.text)
        found["token_logprobs"].append(finite(entry.logprob))
        found["top_logprobs"].append({item.text: finite(item.logprob) for item in entry.top})
        found["text_offset"].append(offset)
        offset += len(entry.text)
    return found


class _Stream:
    """The chunks of completions, of several side by side by their ``index``."""

    def __init__(self, head: Mapping[str, Any], count: int, *, include_usage: bool) -> None:
        self._head = head
        self._include_usage = include_usage
        self._offsets = [0] * count
        self._left = set(range(count))

    def open(self) -> bytes:
        """Nothing: the first chunk has the first word."""
        return b""

    def beat(self) -> bytes:
        """A chunk that says nothing: a comment might come first, which has broken a client."""
        return self._chunk(0, "")

    def event(self, event: Event) -> bytes:
        """The chunks of an event."""
        if isinstance(event, TextDelta) and (event.text or event.logprobs):
            offset = self._offsets[event.index]
            self._offsets[event.index] += len(event.text)
            logprobs = _logprobs(event.logprobs, offset) if event.logprobs else None
            return self._chunk(event.index, event.text, logprobs=logprobs)
        if isinstance(event, ChoiceFinished):
            self._left.discard(event.index)
            return self._chunk(event.index, "", reason=finish_reason(event.reason))
        if isinstance(event, Finished):
            reason = finish_reason(event.reason)
            ends = [self._chunk(index, "", reason=reason) for index in sorted(self._left)]
            if self._include_usage:
                ends.append(frame({**self._head, "choices": [], "usage": usage_of(event.usage)}))
            return b"".join([*ends, DONE])
        return b""

    def fail(self, refusal: Refusal, request_id: str) -> bytes:
        """An error, and no end."""
        return frame(openai_form(refusal, request_id))

    def _chunk(self, index: int, text: str, *, reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return frame({**self._head, "choices": [choice]})


DIALECT = Dialect(TABLE, read)

__all__ = ["DIALECT", "TABLE", "read"]
