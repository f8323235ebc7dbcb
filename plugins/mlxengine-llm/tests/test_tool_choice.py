"""Which tools a model calls is what the request says, in the model's own notation, whatever it would like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import TEMPLATE, Plugin, write_tiny
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
from mlxengine.errors import InvalidParameterError, UnsupportedInputError
from mlxengine.readonly import thaw
from speech_texts import MARKS, SHOWN
from test_speech import check

pytestmark = [pytest.mark.feature("llm.tool_calling"), pytest.mark.feature("llm.structured_output")]

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
# JSON and another notation every day.
_DAILY = ("json_tools", "gemma4")
NAMES = [pytest.param(name, marks=[] if name in _DAILY else pytest.mark.slow) for name in (*SHOWN, "generic")]


def tool(name: str, schema: Any = None, *, strict: bool = False) -> dict[str, Any]:
    parameters = SCHEMAS[name] if schema is None else schema
    function = {"name": name, "description": "", "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


BOTH = (tool("weather"), tool("send"))


def asking(choice: Any, seed: int = 0, *, tools: Any = BOTH, **more: Any) -> TextRequest:
    wanted = {name: more.pop(name) for name in ("parallel_tool_calls",) if name in more}
    params = GenerateParams(**{"max_tokens": 2000, "temperature": 1.0, "seed": seed, **more})
    return TextRequest(
        messages=(Message.user("x"),), tools=tools, tool_choice=choice, params=params, **wanted
    )


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    """As everywhere, but for all tests of a model."""
    found = Plugin()
    yield found
    found.close()


@pytest.fixture(scope="module", params=NAMES)
def model(request: Any, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random model of each notation, most of which can reason too."""
    name = request.param
    marks = MARKS.get(name, [])
    if name not in ("harmony", "gemma4", "kimi_k3", "muse_spark", "generic"):
        marks = list(dict.fromkeys([*marks, "<think>", "</think>"]))
    template = "{# " + SHOWN.get(name, "") + " #}" + TEMPLATE
    if name in ("harmony", "muse_spark"):
        template = template.replace("<|im_start|>assistant\n", "<|start|>assistant")
    folder = tmp_path_factory.mktemp(name) / "model"
    found = plugin.load(write_tiny(folder, extra=marks, template=template))
    calls = found.dialect.calls
    assert (calls.name if calls else "generic" if not found.dialect.headers else "harmony") == name
    return found


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


def test_a_forced_call_fits_its_schema_50_of_50(plugin: Plugin, model: Any) -> None:
    alone: dict[str, Any] = {"parallel_tool_calls": False, "thinking": False}
    started = [plugin.start(model, asking(ToolChoice("weather"), seed, **alone)) for seed in range(50)]
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


def beginning(plugin: Plugin, model: Any, request: TextRequest, text: str) -> Any:
    """The stream of an answer that begins with this text."""
    stream = plugin.start(model, request)
    script = model.tokenizer.encode(text, add_special_tokens=False)
    answer = stream.answers()._answer

    def force(tokens: mx.array, logits: mx.array) -> mx.array:
        at = tokens.size - len(answer.prompt)
        if at >= len(script):
            return logits
        return mx.where(mx.arange(logits.shape[-1]) == script[at], 0.0, -mx.inf)[None]

    answer.processors.insert(0, force)
    return stream


def test_required_calls_are_valid_with_and_without_reasoning(plugin: Plugin, model: Any) -> None:
    dialect, tokenizer = model.dialect, model.tokenizer
    begins = dialect.headers.thought[0] if dialect.headers else dialect.think[0] if dialect.think else ""
    ends = dialect.headers.thought_end if dialect.headers else dialect.think[1] if dialect.think else ""
    likely = tuple((token, 3.0) for token in tokenizer.encode(ends, add_special_tokens=False)[:1])
    more: dict[str, Any] = {"thinking_budget": 8} if dialect.bounded else {"logit_bias": likely or None}
    streams = [plugin.start(model, asking("required", seed, thinking=False)) for seed in range(3)]
    streams += [beginning(plugin, model, asking("required", seed, **more), begins) for seed in range(3)]
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
    plugin: Plugin, model: Any
) -> None:
    opens = (
        model.dialect.calls.opens
        if model.dialect.calls
        else "to=functions."
        if model.dialect.headers
        else "{"
    )
    likely = (model.tokenizer.encode(opens, add_special_tokens=False)[0], 6.0)
    alone: dict[str, Any] = {"parallel_tool_calls": False, "thinking": False, "logit_bias": (likely,)}
    one = [asking("required", seed, **alone) for seed in range(3)]
    for events in plugin.run([plugin.start(model, request) for request in one]):
        (call,) = calls_of(events)
        valid(call)
    none = [asking("none", seed, max_tokens=60, logit_bias=(likely,)) for seed in range(3)]
    for events in plugin.run([plugin.start(model, request) for request in none]):
        assert not calls_of(events)
        assert opens not in text_of(events)


def test_each_of_sixteen_that_want_different_things_equals_its_solo_run(plugin: Plugin, model: Any) -> None:
    free = "auto" if model.dialect.named else "required"
    strict = (tool("weather", strict=True), tool("send"))
    requests = []
    for seed in range(0, 16, 8):
        few = {"max_tokens": 40}
        requests += [
            asking(ToolChoice("weather"), seed, **few),
            asking("required", seed + 1, **few),
            asking("none", seed + 2, **few),
            asking(free, seed + 3, **few),
            asking(free, seed + 4, tools=strict, **few),
            asking(free, seed + 5, grammar=Grammar.regex("[a-z]{3,9}"), **few),
            asking(free, seed + 6, parallel_tool_calls=False, **few),
            TextRequest(
                messages=(Message.user("x"),), params=GenerateParams(temperature=1.0, seed=seed, **few)
            ),
        ]
    alone = [plugin.run([plugin.start(model, request)])[0] for request in requests]
    later = {2 * at: [lambda item=item: plugin.start(model, item)] for at, item in enumerate(requests)}
    together = plugin.run([], later=later)
    for left, right in zip(alone, together, strict=True):
        assert left[:-1] == right[:-1]


def written(model: Any, events: Any) -> str:
    """All that an answer wrote, the marks of its calls too."""
    deltas = [event for event in events if isinstance(event, TextDelta | ReasoningDelta)]
    return str(model.tokenizer.decode([token for event in deltas for token in event.token_ids]))


def accepts(model: Any, request: TextRequest, text: str) -> bool:
    """Whether an answer may be this text, as llguidance reads the grammar of the request."""
    from llguidance import LLMatcher
    from mlxengine.toolkit.speech import Answering

    prompt = model.prompts.tokens(TextRequest(messages=request.messages))
    params = Answering(dialect=model.dialect, request=request, prompt=prompt, stop_ids=model.stop_ids).params
    if params.grammar is None:
        return True
    made = LLMatcher.grammar_from_lark(params.grammar.source)
    matcher = LLMatcher(model.grammars._words(), made, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    return matcher.validate_tokens(tokens) == len(tokens) and (
        matcher.consume_tokens(tokens) and matcher.is_accepting()
    )


def test_a_strict_tool_binds_once_its_call_has_begun_and_the_text_around_is_free(
    plugin: Plugin, model: Any
) -> None:
    dialect = model.dialect
    if dialect.calls is None or dialect.headers is not None:
        return  # messages with headers are one or the other, which the next test sees
    (events,) = plugin.run(
        [plugin.start(model, asking(ToolChoice("weather"), 1, parallel_tool_calls=False, thinking=False))]
    )
    (call,) = calls_of(events)
    whole = written(model, events)
    around = whole if not dialect.calls.closes or dialect.silent else f"Hm. {whole} And on."
    strict = asking("auto", tools=(tool("weather", strict=True), tool("send")))
    code = str(thaw(call.arguments)["code"])
    assert accepts(model, strict, around)
    assert accepts(model, strict, "Only <text.") or dialect.silent
    assert not accepts(model, strict, around.replace(code, "wrong"))
    assert accepts(model, asking("auto"), around.replace(code, "wrong"))
    single = asking("auto", parallel_tool_calls=False)
    assert accepts(model, single, around)
    assert not accepts(model, single, f"{around}{whole}")
    assert not accepts(model, asking("none"), around)
    assert not accepts(model, asking("required"), "text")
    assert accepts(model, asking("required"), whole)
    assert not accepts(model, asking(ToolChoice("send")), whole)


def test_a_grammar_stands_beside_the_tools(plugin: Plugin, model: Any) -> None:
    dialect = model.dialect
    if not dialect.named:
        return  # such a model has no choice
    (events,) = plugin.run(
        [plugin.start(model, asking("required", 2, parallel_tool_calls=False, thinking=False))]
    )
    before, after = "", ""
    if dialect.headers:
        before = dialect.headers.answer[0]
    elif dialect.silent:
        before, after = dialect.silent[:2]
    for grammar, fits, other in (
        (Grammar.choices(["yes", "no"]), "yes", "maybe"),
        (
            Grammar.json({"type": "object", "properties": {"a/b": {"type": "integer"}}}),
            '{"a/b": 1}',
            '{"a/b": "x"}',
        ),
        (Grammar.lark('start: "{" x "}"\nx: /[a-z]+\\/b/'), "{a/b}", "{a}"),
        (Grammar.json(True), "[1]", "["),
    ):
        request = asking("auto", grammar=grammar)
        assert accepts(model, request, f"{before}{fits}{after}")
        assert not accepts(model, request, f"{before}{other}{after}")
        assert accepts(model, asking("none", grammar=grammar), f"{before}{fits}{after}")
        assert accepts(model, request, written(model, events))


@pytest.fixture(scope="module")
def qwen(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    template = "{# " + SHOWN["qwen3_coder"] + " #}" + TEMPLATE
    return plugin.load(write_tiny(tmp_path_factory.mktemp("qwen") / "model", template=template))


@pytest.fixture(scope="module")
def silent(plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose template knows nothing of tools."""
    return plugin.load(write_tiny(tmp_path_factory.mktemp("silent") / "model"))


@pytest.mark.parametrize(
    ("keyword", "schema"),
    [
        ("not", {"properties": {"a": {"type": "integer", "not": {"const": 3}}}}),
        ("uniqueItems", {"properties": {"a": {"type": "array", "uniqueItems": True}}}),
        ("format", {"properties": {"a": {"type": "string", "format": "date"}}}),
        ("minProperties", {"type": "object", "minProperties": 2}),
        ("anyOf", {"anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
        ("enum", {"properties": {"a": {"enum": [" blank ", "b"]}}}),
    ],
)
def test_a_schema_that_cannot_be_held_is_refused_by_its_keyword_where_it_must_hold(
    plugin: Plugin, qwen: Any, keyword: str, schema: Any
) -> None:
    own = (tool("a", {"type": "object", **schema}),)
    strict = (tool("a", {"type": "object", **schema}, strict=True),)
    few = {"max_tokens": 4}
    for request in (
        asking("required", tools=own, **few),
        asking(ToolChoice("a"), tools=own, **few),
        asking("auto", tools=strict, **few),
    ):
        (events,) = plugin.run([plugin.start(qwen, request)])
        assert isinstance(events[-1], UnsupportedInputError | InvalidParameterError)
        assert keyword in str(events[-1])
    (events,) = plugin.run([plugin.start(qwen, asking("auto", tools=own, **few))])
    assert not isinstance(events[-1], Exception)


def test_a_schema_with_too_many_patterns_is_refused_at_once(plugin: Plugin, qwen: Any) -> None:
    many = {"type": "object", "patternProperties": {f"^{at}$": {} for at in range(500)}}
    (events,) = plugin.run([plugin.start(qwen, asking("required", tools=(tool("a", many),)))])
    assert isinstance(events[-1], InvalidParameterError)
    assert "patternProperties" in str(events[-1])


def test_a_model_without_a_notation_is_told_of_the_tools_and_of_its_calls(
    plugin: Plugin, silent: Any
) -> None:
    from mlxengine.text.messages import ToolCallPart, ToolResultPart
    from mlxengine.toolkit.speech import shown

    history = (
        Message.system("Be brief."),
        Message.user("How is it?"),
        Message(role="assistant", parts=(ToolCallPart("1", "weather", {"city": "Wien"}),)),
        Message(role="tool", parts=(ToolResultPart(id="1", name="weather", content="sunny"),)),
    )
    request = TextRequest(messages=history, tools=BOTH, tool_choice="required")
    text = silent.tokenizer.decode(silent.prompts.tokens(shown(silent.dialect, request)))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call these tools")
    assert '"name": "weather"' in text
    assert '<|im_start|>assistant\n{"name": "weather", "arguments": {"city": "Wien"}}<|im_end|>' in text
    assert "<|im_start|>user\nweather returned: sunny<|im_end|>" in text
    with pytest.raises(UnsupportedInputError, match="tool calls"):
        plugin.start(silent, asking("auto"))


def test_a_call_in_the_reasoning_of_a_bound_answer_is_reasoning(plugin: Plugin, model: Any) -> None:
    """What stands there is free, and what is forced comes behind it."""
    from mlxengine.toolkit.speech import Router

    if model.dialect.think is None or model.dialect.calls is None:
        return
    start, end = model.dialect.think
    opens = model.dialect.calls.opens
    router = Router(model.dialect, model.dialect.calls, SCHEMAS, bound=True)
    events = [*router.feed(f"{start}a {opens} b{end}done"), *router.finish()]
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert (reasoning, text_of(events)) == (f"a {opens} b", "done")
