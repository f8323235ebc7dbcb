"""Which tools a model calls is what the request says, in the model's own notation, whatever it would like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from llm_harness import TEMPLATE, Plugin, write_tiny
from mlxengine import (
    FinishReason,
    Grammar,
    Message,
    ReasoningDelta,
    TextRequest,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnsupportedInputError
from mlxengine.readonly import thaw
from mlxengine.toolkit.speech import shown
from speech_texts import MARKS, SHOWN

from tests.hub.fixtures import HubModel
from tests.tool_calls import (  # noqa: F401
    BOTH,
    SCHEMAS,
    calls_of,
    test_a_forced_call_fits_its_schema_50_of_50,
    test_each_of_sixteen_that_want_different_things_equals_its_solo_run,
    test_one_call_where_parallel_calls_are_ruled_out_and_none_where_tools_are,
    test_required_calls_are_valid_with_and_without_reasoning,
    text_of,
    tool,
    written,
)
from tests.tool_calls import asking as asking_of

pytestmark = [pytest.mark.feature("llm.tool_calling"), pytest.mark.feature("llm.structured_output")]

# JSON and another notation every day.
_DAILY = ("json_tools", "gemma4")
NAMES = [pytest.param(name, marks=[] if name in _DAILY else pytest.mark.slow) for name in (*SHOWN, "generic")]


def asking(choice: Any, seed: int = 0, **more: Any) -> TextRequest:
    return asking_of(Message.user("x"), choice, seed, **more)


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
    switch = "{% if enable_thinking %}{% endif %}"
    template = "{# " + SHOWN.get(name, "") + " #}" + switch + TEMPLATE
    if name in ("harmony", "muse_spark"):
        template = template.replace("<|im_start|>assistant\n", "<|start|>assistant")
    folder = tmp_path_factory.mktemp(name) / "model"
    found = plugin.load(write_tiny(folder, extra=marks, template=template))
    calls = found.dialect.calls
    assert (calls.name if calls else "generic" if not found.dialect.headers else "harmony") == name
    return found


@pytest.fixture
def message() -> Message:
    """What is asked."""
    return Message.user("x")


def accepts(model: Any, request: TextRequest, text: str) -> bool:
    """Whether an answer may be this text, as llguidance reads the grammar of the request."""
    from llguidance import LLMatcher
    from mlxengine.toolkit.speech import Answering

    prompt = model.prompts.make(TextRequest(messages=request.messages)).ids
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
    if dialect.calls.closes and dialect.calls.between is None:
        # Templates part calls that have a piece each by a line break or by nothing; models write as they do.
        assert accepts(model, asking("required"), f"{whole}\n{whole}{whole}")
        assert not accepts(model, asking("required"), f"{whole} and {whole}")


def test_a_stop_text_within_a_call_is_why_the_answer_ended(plugin: Plugin, model: Any) -> None:
    (events,) = plugin.run(
        [plugin.start(model, asking(ToolChoice("weather"), 1, stop=["city"], thinking=False))]
    )
    (call,) = calls_of(events)
    assert call.error
    assert (events[-1].reason, events[-1].stop) == (FinishReason.STOP, "city")


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
        if dialect.think and not dialect.begins_with_a_token:  # reasoning is part of the grammar then
            thought = f"{dialect.think[0]}hm{dialect.think[1]}"
            assert accepts(model, request, thought + written(model, events))
            assert accepts(model, request, f"{thought}{before}{fits}{after}")


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"properties": ["a"]},
        {"properties": {"a": {}}, "required": 3},
        {"properties": {"a": {}}, "required": None},
        {"properties": {"a": {"type": 3}}},
        {"properties": {"a": {"type": "string", "minLength": "x"}}},
        {"properties": {"a": {"type": "string", "pattern": 3}}},
    ],
)
def test_what_is_no_json_schema_ends_with_the_callers_error_where_it_must_hold(
    plugin: Plugin, model: Any, wrong: Any
) -> None:
    own = (tool("a", {"type": "object", **wrong}),)
    (events,) = plugin.run([plugin.start(model, asking("required", tools=own, max_tokens=4))])
    assert isinstance(events[-1], UnsupportedInputError | InvalidParameterError)


def test_without_structured_output_nothing_can_be_forced(plugin: Plugin, qwen: Any) -> None:
    (events,) = plugin.run([plugin.start(qwen, asking("required"), structured_output=False)])
    assert isinstance(events[-1], FeatureUnavailableError)
    (events,) = plugin.run([plugin.start(qwen, asking("auto", max_tokens=4), structured_output=False)])
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
    text = silent.tokenizer.decode(silent.prompts.make(shown(silent.dialect, request)).ids)
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


def test_a_real_model_without_a_notation_makes_a_valid_call(plugin: Plugin, smollm2: HubModel) -> None:
    model = plugin.load(smollm2.folder)
    assert not model.dialect.named
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 2, 3]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    request = asking_of(
        Message.user("How is the weather in Vienna? Call the tool."),
        ToolChoice("weather"),
        tools=(tool("weather", schema), tool("send")),
        temperature=0,
        max_tokens=120,
        parallel_tool_calls=False,
    )
    (events,) = plugin.run([plugin.start(model, request)])
    (call,) = calls_of(events)
    found: Any = thaw(call.arguments)
    assert call.name == "weather"
    assert "Vienna" in found["city"]
    assert set(found) <= {"city", "days"}
    assert text_of(events) == ""
    assert events[-1].reason == "tool_calls"


def test_the_prompt_is_the_same_where_no_tool_may_be_called(model: Any) -> None:
    """What was computed for the turn before, in which one was called, serves the next."""
    called = (
        Message.user("x"),
        Message.assistant([ToolCallPart("1", "weather", {"city": "Graz"})]),
        Message.tool(ToolResultPart("1", "weather", "sunny")),
    )
    for messages in ((Message.user("x"),), called):
        request = attrs.evolve(asking("none"), messages=messages)
        found, wanted = (
            shown(model.dialect, attrs.evolve(request, tool_choice=choice)) for choice in ("none", "required")
        )
        assert attrs.evolve(found, tool_choice="auto") == attrs.evolve(wanted, tool_choice="auto")
        assert "weather" in str(found.tools) + str(found.instructions)
