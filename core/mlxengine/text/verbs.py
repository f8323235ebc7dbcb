"""How a model that answers in text is asked and measured from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..contract.events import Event, Metrics
from ..contract.kinds import Answer, Asking, Measuring, Option, positive
from ..contract.requests import Request
from ..contract.tokens import TokenUsage
from ..readonly import thaw
from .handle import TextHandle, text_request
from .messages import ImagePart, Message, TextPart
from .outputs import Prepared, TextDelta, ToolCall
from .params import GenerateParams, params_from
from .replies import TextReply
from .requests import PrepareRequest, TextRequest, ToolChoice
from .tool_files import together, tools_of

_PARAMETERS = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
}
OPTIONS = (
    *(
        Option(flag=f"--{name.replace('_', '-')}", type=kind, help="the model's own if left out")
        for name, kind in _PARAMETERS.items()
    ),
    Option(flag="--seed", type=int, help="makes the answer repeatable"),
    Option(
        flag="--stop",
        metavar="TEXT",
        default=(),
        repeated=True,
        help="a text that ends the answer; repeatable",
    ),
    Option(flag="--system", metavar="TEXT", help="instructions before the conversation"),
)
_WORDS = "The quick brown fox jumps over the lazy dog while seven wizards mix nine bright potions. "


def params(options: Mapping[str, Any]) -> GenerateParams:
    """How to generate, by `OPTIONS`.

    Raises:
        InvalidParameterError: a value is out of its range.
    """
    return params_from({name: options[name] for name in (*_PARAMETERS, "seed", "stop")})


def stats(usage: TokenUsage, metrics: Metrics) -> str:
    """Tokens and rates of an answer, in one line."""
    parts = [f"{usage.prompt_tokens} prompt tokens"]
    if usage.cached_tokens:
        parts[0] += f" ({usage.cached_tokens} cached)"
    parts.append(f"{usage.completion_tokens} generated")
    if metrics.first_event_seconds is not None:
        parts.append(f"first after {metrics.first_event_seconds:.2f} s")
    if metrics.generation_per_second:
        parts.append(f"{metrics.generation_per_second:.1f} tokens/s")
    return ", ".join(parts)


def _part(text: str) -> str:
    if text not in ("count", "text", "tokens"):
        raise ValueError(f"{text!r} is not count, text or tokens")
    return text


class _Asking(Asking):
    options = (
        *OPTIONS,
        Option(
            flag="--image",
            metavar="FILE",
            default=(),
            repeated=True,
            help="a picture in the question; repeatable",
        ),
        Option(
            flag="--tools",
            type=Path,
            metavar="FILE",
            default=(),
            repeated=True,
            help="a Python file whose functions, or those in its list TOOLS, the model may call; its "
            "calls are told, not run; repeatable",
        ),
        Option(
            flag="--tool-choice",
            metavar="auto|none|required|NAME",
            default="auto",
            help="whether it calls one, or the one that it calls",
        ),
        Option(
            flag="--prepare",
            type=_part,
            metavar="count|text|tokens",
            help="answer nothing: tell the prompt's number of tokens, its text, or their ids",
        ),
    )
    first = "Say hello in one short sentence."

    def request(self, words: Sequence[str], options: Mapping[str, Any]) -> Request:
        prompt = " ".join(words)
        images = [ImagePart(name) for name in options["image"]]
        question = Message.user([*images, TextPart(prompt)]) if images else prompt
        choice = options["tool_choice"]
        request = text_request(
            question,
            params(options),
            instructions=options["system"],
            tools=together([(str(path), tools_of(path)) for path in options["tools"]]),
            tool_choice=choice if choice in ("auto", "none", "required") else ToolChoice(choice),
        )
        if options["prepare"] is not None and isinstance(request, TextRequest):
            return PrepareRequest(request=request)
        return request

    def show(self, event: Event) -> str:
        return event.text if isinstance(event, TextDelta) else ""

    def answer(self, events: Sequence[Event], options: Mapping[str, Any]) -> Answer:
        for told in (event for event in events if isinstance(event, Prepared)):
            return _prepared(told, options["prepare"])
        reply = TextReply.of(events)
        value = {
            "text": reply.text,
            "reasoning": reply.reasoning or None,
            "tool_calls": [_call(call) for call in reply.tool_calls],
            "finish_reason": reply.finish_reason,
            "usage": reply.usage,
            "metrics": reply.metrics,
            "mock": reply.mock,
        }
        text = "\n".join(map(call_in_line, reply.tool_calls))
        return Answer(value=value, text=text, stats=stats(reply.usage, reply.metrics))


def _call(call: ToolCall) -> Mapping[str, Any]:
    value = {"id": call.id, "name": call.name, "arguments": call.arguments}
    return value if call.error is None else {**value, "raw": call.raw, "error": call.error}


def call_in_line(call: ToolCall) -> str:
    """A call on one line, whole: who allows it has to see what it does."""
    if call.arguments is None:
        return f"{call.name} ({call.error}) {call.raw!r}"
    return f"{call.name} {json.dumps(thaw(call.arguments), ensure_ascii=False)}"


def _prepared(told: Prepared, what: str) -> Answer:
    count = len(told.token_ids)
    texts = {"count": str(count), "text": told.text or "", "tokens": " ".join(map(str, told.token_ids))}
    value = {"prompt_tokens": count, "text": told.text, "token_ids": told.token_ids, "mock": told.mock}
    return Answer(value=value, text=texts[what], stats=f"{count} prompt tokens")


class _Measuring(Measuring):
    options = (
        Option(flag="--prompt-words", type=positive, default=128, metavar="N"),
        Option(flag="--max-tokens", type=positive, default=32, metavar="N", help="tokens to decode"),
        Option(flag="--batch", type=positive, default=4, metavar="N", help="requests at once"),
    )

    def measure(self, handle: TextHandle, options: Mapping[str, Any]) -> Mapping[str, float]:
        params = GenerateParams(max_tokens=options["max_tokens"], temperature=0, ignore_eos=True)
        salt, words, batch = time.monotonic_ns(), options["prompt_words"], options["batch"]
        alone = handle.generate(_prompt(words, salt), params)
        first = alone.metrics.first_event_seconds or alone.metrics.total_seconds
        rest = alone.metrics.total_seconds - first
        figures = {
            "first token, s": first,
            "prefill, tokens/s": (alone.usage.prompt_tokens - alone.usage.cached_tokens) / first,
        }
        if alone.usage.completion_tokens > 1 and rest > 0:
            figures["decode, tokens/s"] = (alone.usage.completion_tokens - 1) / rest
        start = time.perf_counter()
        streams = [handle.stream(_prompt(words, f"{salt} {number}"), params) for number in range(batch)]
        replies = [TextReply.of(stream) for stream in streams]
        seconds = time.perf_counter() - start
        total = sum(reply.usage.completion_tokens for reply in replies)
        figures[f"batch of {batch}, tokens/s"] = total / seconds
        figures["peak memory, bytes"] = max(
            float(reply.metrics.peak_memory_bytes or 0) for reply in (alone, *replies)
        )
        return figures


def _prompt(words: int, salt: object) -> str:
    """Words that no cache has seen yet, since the first one differs."""
    return f"{salt} {(_WORDS * (words // 15 + 1))}"[: words * 6]


RUN = _Asking()
BENCH = _Measuring()

__all__ = ["BENCH", "OPTIONS", "RUN", "call_in_line", "params", "stats"]
