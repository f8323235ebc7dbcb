"""What the planned model says: a call where tools are shown, JSON where a schema is, else a greeting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mlxengine import (
    Event,
    Finished,
    FinishReason,
    Prepared,
    PrepareRequest,
    ReasoningDelta,
    Request,
    TextDelta,
    TextRequest,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResultPart,
)

USAGE = TokenUsage(prompt_tokens=20, completion_tokens=6)


def sample(schema: Any) -> Any:
    """A value that fits a JSON schema of a simple kind."""
    if "enum" in schema:
        return schema["enum"][0]
    if "$ref" in schema or "anyOf" in schema:
        return sample(schema.get("anyOf", [{}])[0])
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: sample(item) for name, item in schema.get("properties", {}).items()}
    return {"string": "Oslo", "integer": 7, "number": 1.5, "boolean": True, "array": []}.get(kind)


def results(request: TextRequest) -> list[str]:
    """What tools answered so far."""
    parts = [part for message in request.messages for part in message.parts]
    return [part.content for part in parts if isinstance(part, ToolResultPart)]


def call(name: str, arguments: Any, number: int = 0) -> Iterator[Event]:
    """A call as a model writes it: its name, then its arguments in pieces, then the whole."""
    identity, text = f"call_{number}", json.dumps(arguments)
    yield ToolCallDelta(id=identity, name=name)
    for start in range(0, len(text), 7):
        yield ToolCallDelta(id=identity, name=name, arguments=text[start : start + 7])
    yield ToolCall(id=identity, name=name, arguments=arguments)
    yield Finished(reason=FinishReason.TOOL_CALLS, usage=USAGE)


def say(text: str) -> Iterator[Event]:
    """A text, word by word."""
    for number, word in enumerate(text.split(" ")):
        yield TextDelta(text=word if not number else f" {word}", token_ids=(number,))
    yield Finished(reason=FinishReason.STOP, usage=USAGE)


def plan(request: Request) -> Iterator[Event]:
    """What the model does with any request."""
    if isinstance(request, PrepareRequest):
        return iter([Prepared(token_ids=tuple(range(42)), text=""), Finished()])
    assert isinstance(request, TextRequest)
    found = results(request)
    if request.params.grammar is not None:
        return say(json.dumps(sample(json.loads(request.params.grammar.source))))
    chosen = request.tool_choice
    forced = isinstance(chosen, ToolChoice) or chosen == "required"
    if request.tools and chosen != "none" and (forced or not found):
        by_name = {tool["function"]["name"]: tool["function"] for tool in request.tools}
        name = chosen.name if isinstance(chosen, ToolChoice) else next(iter(by_name))
        return call(name, sample(by_name[name].get("parameters", {})), len(found))
    if found:
        return say(f"The tool said: {found[-1]}")
    return iter([ReasoningDelta(text="A greeting."), *say("Hello from here.")])


def mending(steps: list[tuple[str, dict[str, Any]]]) -> Any:
    """A plan of a task in several calls: each is made when the one before has its result."""

    def planned(request: Request) -> Iterator[Event]:
        if not isinstance(request, TextRequest) or not request.tools:
            return plan(request)
        found = results(request)
        if len(found) < len(steps):
            name, arguments = steps[len(found)]
            return call(name, arguments, len(found))
        return say(f"Done after {len(found)} calls; the last one said: {found[-1].strip()[-40:]}")

    return planned


__all__ = ["call", "mending", "plan", "say"]
