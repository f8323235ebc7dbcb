"""From a request for text to the events of an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, cycle, islice

from attrs import frozen
from mlxengine import (
    Event,
    Finished,
    FinishReason,
    GenerateParams,
    Loaded,
    ModelCard,
    Request,
    TextDelta,
    TextPart,
    TextRequest,
    TokenUsage,
    ToolCall,
    ToolCallPart,
    ToolResultPart,
)
from mlxengine.errors import IncompatibleWeightsError, PromptTooLongError, UnsupportedInputError
from mlxengine.text.tools import describe

HONOURED = frozenset({"max_tokens", "stop", "seed", "ignore_eos", "temperature"})
"""What it heeds of `GenerateParams`; to ignore the others silently would tell the caller something untrue."""

_USUAL = 256


@frozen(kw_only=True)
class Echo:
    """A loaded model: there is nothing to it but how many words it takes."""

    context_length: int


def load(card: ModelCard) -> Loaded:
    """A model from its card; `info` has the names that the kind's other back ends use."""
    length = card.config.get("context_length")
    if not isinstance(length, int) or length < 2:
        raise IncompatibleWeightsError(f"config.json of {card.id} must give context_length, from 2.")
    return Loaded(model=Echo(context_length=length), info={"library": "echo", "context_length": length})


def answer(model: Echo, request: Request) -> Iterator[Event] | None:
    """Check the request, which a generator could only do at its first step, and start."""
    if not isinstance(request, TextRequest):
        return None  # scores, adapters: requests of the kind that this back end does not have
    _refuse(request)
    prompt, last = _read(request)
    tokens = len(_words(prompt))
    if tokens >= model.context_length:
        raise PromptTooLongError(
            f"The conversation has {tokens} words; this model takes {model.context_length - 1}.",
            hint="Leave out its oldest turns.",
        )
    params = request.params
    most = min(_USUAL if params.max_tokens is None else params.max_tokens, model.context_length - tokens)
    call = _call(request, last)
    return _say(last, params, tokens, most) if call is None else _ask(call, tokens)


def _refuse(request: TextRequest) -> None:
    params = request.params
    beyond = params.given - HONOURED
    if beyond or params.temperature:
        names = ", ".join(sorted(beyond)) or f"temperature={params.temperature:g}"
        raise UnsupportedInputError(
            f"This back end does not honour {names}.",
            hint=f"It honours {', '.join(sorted(HONOURED - {'temperature'}))} and temperature=0.",
        )
    parts = [part for message in request.messages for part in message.parts]
    if not all(isinstance(part, TextPart | ToolCallPart | ToolResultPart) for part in parts):
        raise UnsupportedInputError("This model reads text only.", hint="Leave pictures and sound out.")
    if request.prompt_tokens is not None:
        raise UnsupportedInputError("This model has no tokenizer.", hint="Give a prompt or messages.")


def _read(request: TextRequest) -> tuple[str, str]:
    """The whole conversation, and what was said last."""
    if request.prompt is not None:
        return request.prompt, request.prompt
    parts = [part for message in request.messages for part in message.parts]
    said = [part.text for part in parts if isinstance(part, TextPart)]
    found = [part.content for part in parts if isinstance(part, ToolResultPart)]
    results = [part for part in request.messages[-1].parts if isinstance(part, ToolResultPart)]
    last = " ".join(part.content for part in results) if results else request.messages[-1].text
    return " ".join([request.instructions or "", *said, *found]), last


def _call(request: TextRequest, last: str) -> ToolCall | None:
    """The call of a tool whose name is said, with the JSON object behind it; not of what a tool answered."""
    if request.messages and any(isinstance(part, ToolResultPart) for part in request.messages[-1].parts):
        return None
    for tool in request.tools:
        described = describe(tool)
        name = described.get("function", described)["name"]
        found = re.search(rf"(?<!\w){re.escape(name)}\s*(\{{.*\}})", last, re.DOTALL)
        if found is None:
            continue
        number = sum(isinstance(part, ToolCallPart) for message in request.messages for part in message.parts)
        try:
            arguments = json.loads(found[1])
        except ValueError as error:
            return ToolCall(id=f"call-{number}", name=name, raw=found[1], error=str(error))
        return ToolCall(id=f"call-{number}", name=name, arguments=arguments, raw=found[1])
    return None


def _ask(call: ToolCall, tokens: int) -> Iterator[Event]:
    yield call
    yield Finished(reason=FinishReason.TOOL_CALLS, usage=_usage(tokens, 1))


def _say(text: str, params: GenerateParams, tokens: int, most: int) -> Iterator[Event]:
    """A word a step. What could still become a stop text would have to wait; here it is known beforehand."""
    words = _words(text)
    endless = params.ignore_eos and bool(words)
    again = _words(f" {text.strip()}") if endless else []
    said = list(islice(chain(words, cycle(again)), most))
    whole = "".join(said)
    stops = [(whole.find(stop), stop) for stop in params.stop if stop in whole]
    end, stop = min(stops, default=(len(whole), None))
    count = at = 0
    for word in said:
        if at >= end:
            break
        count += 1
        yield TextDelta(text=word[: end - at], token_ids=(count,))
        at += len(word)
    cut = stop is None and (endless or len(said) < len(words))
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    yield Finished(reason=reason, stop=stop, usage=_usage(tokens, count))


def _words(text: str) -> list[str]:
    """The text in pieces of a word and the space before it; they join to the text."""
    return re.findall(r"\s*\S+|\s+$", text)


def _usage(prompt: int, completion: int) -> TokenUsage:
    return TokenUsage(prompt_tokens=prompt, completion_tokens=completion)
