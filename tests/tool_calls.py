"""What every back end for text keeps that calls tools: checks that its plugin's tests run on its models.

A test module that imports the tests gives the fixtures: ``plugin``, ``model`` and what is asked, ``message``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlxengine import (
    GenerateParams,
    Grammar,
    Message,
    ReasoningDelta,
    TextDelta,
    TextRequest,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from mlxengine.readonly import thaw

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 12},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "near": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        "exact": {"type": ["boolean", "null"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 8},
    },
    "required": ["city", "days", "code"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {"to": {"$ref": "#/$defs/person"}},
    "required": ["to"],
    "additionalProperties": False,
    "$defs": {
        "person": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 6},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "boss": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
            },
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS = {"weather": SCHEMA, "send": NESTED}


def tool(name: str, schema: Any = None, *, strict: bool = False) -> dict[str, Any]:
    parameters = SCHEMAS[name] if schema is None else schema
    function = {"name": name, "description": "", "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


BOTH = (tool("weather"), tool("send"))


def asking(message: Message, choice: Any, seed: int = 0, *, tools: Any = BOTH, **more: Any) -> TextRequest:
    wanted = {name: more.pop(name) for name in ("parallel_tool_calls",) if name in more}
    params = GenerateParams(**{"max_tokens": 2000, "temperature": 1.0, "seed": seed, **more})
    return TextRequest(messages=(message,), tools=tools, tool_choice=choice, params=params, **wanted)


def plain(item: ToolCall) -> str:
    from mlxengine.readonly import thaw

    return json.dumps(thaw(item.arguments))


def check(events: list[Any]) -> None:
    """Deltas come before their call, the name first, and joined they are its arguments."""
    told: dict[str, list[ToolCallDelta]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            told.setdefault(event.id, []).append(event)
        elif isinstance(event, ToolCall):
            deltas = told.pop(event.id, [])
            assert all(item.name == event.name for item in deltas)
            if deltas:
                assert deltas[0].arguments == ""
            if event.arguments is not None:
                assert json.loads("".join(item.arguments for item in deltas)) == json.loads(plain(event))
    assert not told, "each call that is told ends"


def spelling(model: Any) -> Any:
    """The tokenizer of a model."""
    return model.dialect.tokenizer


def calls_of(events: Any) -> list[ToolCall]:
    for event in events:
        if isinstance(event, Exception):
            raise event
    return [event for event in events if isinstance(event, ToolCall)]


def text_of(events: Any) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def valid(call: ToolCall) -> None:
    """What the schema of the tool says, checked by hand."""
    assert call.error is None, (call.raw, call.error)
    found: Any = thaw(call.arguments)
    if call.name == "send":
        assert set(found) == {"to"}
        assert {"name", "age"} <= set(found["to"]) <= {"name", "age", "boss"}
        assert isinstance(found["to"]["name"], str)
        assert len(found["to"]["name"]) <= 6
        assert type(found["to"]["age"]) is int
        assert 0 <= found["to"]["age"] <= 150
        assert type(found["to"].get("boss")) in (type(None), int)
        return
    assert {"city", "days", "code"} <= set(found) <= set(SCHEMA["properties"])
    assert isinstance(found["city"], str)
    assert 2 <= len(found["city"]) <= 12
    assert found.get("unit", "C") in ("C", "F")
    assert type(found["days"]) is int
    assert 1 <= found["days"] <= 14
    near = found.get("near", [])
    assert isinstance(near, list)
    assert len(near) <= 2
    assert all(isinstance(item, str) and len(item) <= 4 for item in near)
    assert found.get("exact") in (True, False, None)
    assert re.fullmatch(r"[A-Z]{2}-[0-9]+", found["code"])
    assert len(found["code"]) <= 8


def test_a_forced_call_fits_its_schema_50_of_50(plugin: Any, model: Any, message: Message) -> None:
    alone: dict[str, Any] = {"parallel_tool_calls": False, "thinking": False}
    started = [
        plugin.start(model, asking(message, ToolChoice("weather"), seed, **alone)) for seed in range(50)
    ]
    found = 0
    for events in plugin.run(started):
        (call,) = calls_of(events)
        valid(call)
        assert call.name == "weather"
        check(events)
        assert any(isinstance(event, ToolCallDelta) for event in events)
        assert text_of(events).strip() == ""
        assert events[-1].reason == "tool_calls"
        found += 1
    assert found == 50


def beginning(plugin: Any, model: Any, request: TextRequest, text: str) -> Any:
    """The stream of an answer that begins with this text."""
    stream = plugin.start(model, request)
    script = spelling(model).encode(text, add_special_tokens=False)
    answer = stream.answers()._answer

    def force(tokens: mx.array, logits: mx.array) -> mx.array:
        at = tokens.size - len(answer.prompt)
        if at >= len(script):
            return logits
        return mx.where(mx.arange(logits.shape[-1]) == script[at], 0.0, -mx.inf)[None]

    answer.processors.insert(0, force)
    return stream


def test_required_calls_are_valid_with_and_without_reasoning(
    plugin: Any, model: Any, message: Message
) -> None:
    dialect, tokenizer = model.dialect, spelling(model)
    begins = dialect.headers.thought[0] if dialect.headers else dialect.think[0] if dialect.think else ""
    ends = dialect.headers.thought_end if dialect.headers else dialect.think[1] if dialect.think else ""
    likely = tuple((token, 3.0) for token in tokenizer.encode(ends, add_special_tokens=False)[:1])
    more: dict[str, Any] = {"thinking_budget": 8} if dialect.bounded else {"logit_bias": likely or None}
    streams = [plugin.start(model, asking(message, "required", seed, thinking=False)) for seed in range(3)]
    streams += [
        beginning(plugin, model, asking(message, "required", seed, **more), begins) for seed in range(3)
    ]
    reasoned = 0
    for events in plugin.run(streams):
        calls = calls_of(events)
        if events[-1].reason == "length":
            assert calls.pop().error
        assert calls
        for call in calls:
            valid(call)
        check(events)
        assert text_of(events).strip() == ""
        reasoned += bool(begins) and begins in written(model, events)
    assert reasoned == (3 if dialect.reasons else 0)


def test_one_call_where_parallel_calls_are_ruled_out_and_none_where_tools_are(
    plugin: Any, model: Any, message: Message
) -> None:
    opens = (
        model.dialect.calls.opens
        if model.dialect.calls
        else "to=functions."
        if model.dialect.headers
        else "{"
    )
    likely = (spelling(model).encode(opens, add_special_tokens=False)[0], 6.0)
    alone: dict[str, Any] = {"parallel_tool_calls": False, "thinking": False, "logit_bias": (likely,)}
    one = [asking(message, "required", seed, **alone) for seed in range(3)]
    for events in plugin.run([plugin.start(model, request) for request in one]):
        (call,) = calls_of(events)
        valid(call)
    none = [asking(message, "none", seed, max_tokens=60, logit_bias=(likely,)) for seed in range(3)]
    for events in plugin.run([plugin.start(model, request) for request in none]):
        assert not calls_of(events)
        assert opens not in text_of(events) or not model.dialect.named


def test_each_of_sixteen_that_want_different_things_equals_its_solo_run(
    plugin: Any, model: Any, message: Message
) -> None:
    free = "auto" if model.dialect.named else "required"
    strict = (tool("weather", strict=True), tool("send"))
    requests = []
    for seed in range(0, 16, 8):
        few = {"max_tokens": 40}
        requests += [
            asking(message, ToolChoice("weather"), seed, **few),
            asking(message, "required", seed + 1, **few),
            asking(message, "none", seed + 2, **few),
            asking(message, free, seed + 3, **few),
            asking(message, free, seed + 4, tools=strict, **few),
            asking(message, free, seed + 5, grammar=Grammar.regex("[a-z]{3,9}"), **few),
            asking(message, free, seed + 6, parallel_tool_calls=False, **few),
            TextRequest(messages=(message,), params=GenerateParams(temperature=1.0, seed=seed, **few)),
        ]
    alone = [plugin.run([plugin.start(model, request)])[0] for request in requests]
    later = {2 * at: [lambda item=item: plugin.start(model, item)] for at, item in enumerate(requests)}
    together = plugin.run([], later=later)
    for left, right in zip(alone, together, strict=True):
        assert left[:-1] == right[:-1]


def written(model: Any, events: Any) -> str:
    """All that an answer wrote, the marks of its calls too."""
    deltas = [event for event in events if isinstance(event, TextDelta | ReasoningDelta)]
    return str(spelling(model).decode([token for event in deltas for token in event.token_ids]))
