"""A value of the wrong type is refused where it enters: never by a plugin's crash, never passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from mlxengine import (
    GenerateParams,
    Grammar,
    ImagePart,
    InferenceEngine,
    Message,
    Request,
    ScoreRequest,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from mlxengine.errors import InvalidParameterError
from mlxengine.text.tools import DescribedTool, describe
from mlxengine.toolkit.turns import tools_of

WRONG: Any = {"a": b"x"}
TOOL: Mapping[str, Any] = {"function": {"name": "f", "parameters": {"type": "object"}}}


def asking(**fields: Any) -> TextRequest:
    return TextRequest(messages=[Message.user("x")], **fields)


def tool(**fields: Any) -> Mapping[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


ENTRIES: dict[str, Callable[[], Any]] = {
    "a number as a text": lambda: TextPart(3),  # type: ignore[arg-type]
    "a number as a prompt": lambda: TextRequest(prompt=3),  # type: ignore[arg-type]
    "mappings as messages": lambda: TextRequest(messages=[{"role": "user"}]),  # type: ignore[list-item]
    "one token id": lambda: TextRequest(prompt_tokens=5),  # type: ignore[arg-type]
    "token ids as texts": lambda: TextRequest(prompt_tokens=["5"]),  # type: ignore[list-item]
    "token ids with a fraction": lambda: TextRequest(prompt_tokens=[1.5]),  # type: ignore[list-item]
    "a text to score that is none": lambda: ScoreRequest(text=3),  # type: ignore[arg-type]
    "texts to score that are none": lambda: ScoreRequest(text=[3]),  # type: ignore[list-item]
    "a context that is none": lambda: ScoreRequest(text="a", context=3),  # type: ignore[arg-type]
    "one token id to score": lambda: ScoreRequest(tokens=5),  # type: ignore[arg-type]
    "texts as token ids to score": lambda: ScoreRequest(tokens=[["a", "b"]]),  # type: ignore[list-item]
    "fractions as token ids to score": lambda: ScoreRequest(tokens=[[1.5, 2.5]]),  # type: ignore[list-item]
    "windows in words": lambda: ScoreRequest(text="ab", rolling="no"),  # type: ignore[arg-type]
    "truth as a token id": lambda: ScoreRequest(tokens=[True, 5]),
    "a priority in words": lambda: Request(priority="high"),  # type: ignore[arg-type]
    "a priority that is no number": lambda: Request(priority=float("nan")),  # type: ignore[arg-type]
    "a priority beyond all": lambda: Request(priority=10**400),
    "features in a mapping": lambda: Request(features={"core.max_waiting": 1}),  # type: ignore[arg-type]
    "features without values": lambda: Request(features=("core.max_waiting",)),  # type: ignore[arg-type]
    "a call without arguments": lambda: ToolCallPart("1", "f", [1]),  # type: ignore[arg-type]
    "arguments that are no JSON": lambda: ToolCallPart("1", "f", WRONG),
    "arguments without names": lambda: ToolCallPart("1", "f", {1: 2}),  # type: ignore[dict-item]
    "a result of parts": lambda: ToolResultPart("1", "f", ["x"]),  # type: ignore[arg-type]
    "a path as a result's picture": lambda: ToolResultPart("1", "f", "x", images=["a.png"]),  # type: ignore[list-item]
    "one picture of a result": lambda: ToolResultPart("1", "f", "x", images=ImagePart("a.png")),  # type: ignore[arg-type]
    "template variables without names": lambda: asking(chat_template_kwargs={3: 1}),
    "template variables in a list": lambda: asking(chat_template_kwargs=["a"]),
    "template variables that are no JSON": lambda: asking(chat_template_kwargs=WRONG),
    "no tools as None": lambda: asking(tools=None),
    "one function as tools": lambda: asking(tools=describe),
    "one description as tools": lambda: asking(tools=TOOL),
    "a choice by a number": lambda: ToolChoice(3),  # type: ignore[arg-type]
    "one at a time in words": lambda: asking(parallel_tool_calls="no"),
    "a continuation in words": lambda: asking(continue_final_message="no"),
    "thinking in words": lambda: GenerateParams(thinking="no"),  # type: ignore[arg-type]
    "effort as a number": lambda: GenerateParams(reasoning_effort=3),  # type: ignore[arg-type]
    "log-probabilities in words": lambda: GenerateParams(logprobs="no"),  # type: ignore[arg-type]
    "arguments beyond JSON's numbers": lambda: ToolCallPart("1", "f", {"a": float("inf")}),
    "a schema beyond JSON's numbers": lambda: Grammar.json({"maximum": float("inf")}),
    "a bias of true": lambda: GenerateParams(logit_bias={True: 1.0}),  # type: ignore[arg-type]
    "a bias that is no number": lambda: GenerateParams(logit_bias={1: float("nan")}),  # type: ignore[arg-type]
    "end tokens in a text": lambda: GenerateParams(stop_token_ids="a"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_value_of_the_wrong_type_is_refused_where_it_enters(name: str) -> None:
    with pytest.raises(InvalidParameterError) as found:
        ENTRIES[name]()
    assert not str(found.value).startswith("Expected"), "it says which parameter is wrong"


SESSIONS: dict[str, Any] = {
    "rounds in words": {"tool_rounds": "3"},
    "no tools as None": {"tools": None},
    "one function as tools": {"tools": describe},
    "template variables as None": {"chat_template_kwargs": None},
    "a history of texts": {"history": ["a"]},
}


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_refuses_options_of_the_wrong_type(name: str) -> None:
    (option,) = SESSIONS[name]
    with InferenceEngine(backend="mock") as engine, pytest.raises(InvalidParameterError, match=f"^{option}"):
        engine.load_text("org/name").session(**SESSIONS[name])


TOOLS: dict[str, Any] = {
    "nothing": {},
    "no function": {"type": "function", "function": None},
    "no name": {"function": {"description": "x"}},
    "a name that is no text": tool(name=3),
    "an empty name": tool(name=""),
    "a name with a blank": tool(name="a b"),
    "a name with a quote": tool(name='a"b'),
    "a name with a backslash": tool(name="a\\b"),
    "a name with a line's end": tool(name="a\nb"),
    "a marker as a name": tool(name="<|im_end|>"),
    "a function without a name": lambda city: city,
    "a type without a signature": dict,
    "parameters in a text": tool(parameters="x"),
    "parameters in a list": tool(parameters=[1]),
    "parameters that are no JSON": tool(parameters={"const": b"x"}),
    "strict in words": tool(strict="yes"),
    "a described tool of two names": DescribedTool({"name": "a b"}, print),
}


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_tool_that_no_model_could_call_is_refused_before_anything_runs(name: str, choice: str) -> None:
    with pytest.raises(InvalidParameterError):
        asking(tools=[TOOLS[name]], tool_choice=choice)


def defined(**parts: Any) -> Mapping[str, Any]:
    """A schema with a property of the first of these."""
    return {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{next(iter(parts))}"}}, "$defs": parts}


ENDLESS = {
    "itself": ({"$ref": "#"}, "at # to", "#"),
    "each other": (
        defined(a={"$ref": "#/$defs/b"}, b={"$ref": "#/$defs/a"}),
        "at #/",
        "#/$defs/b",
    ),
    "itself as its only choice": (defined(a={"anyOf": [{"$ref": "#/$defs/a"}]}), "at #/", "#/$defs/a"),
    "itself by an escaped name": (
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}},
        "at #",
        "#/$defs/a~1b",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schema_that_refers_to_nothing_but_itself_is_refused_with_its_place(name: str) -> None:
    schema, place, way = ENDLESS[name]
    for make in (
        lambda: Grammar.json(schema),
        lambda: asking(tools=[tool(parameters=schema)], tool_choice="required"),
        lambda: asking(tools=[tool(parameters=schema, strict=True)]),
    ):
        with pytest.raises(InvalidParameterError, match="nothing but itself") as found:
            make()
        assert place in str(found.value)
        assert way in str(found.value)
    assert asking(tools=[tool(parameters=schema)]).tools, "the model is only shown it"


@pytest.mark.parametrize(
    "schema",
    [
        defined(a={"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}}),
        defined(a={"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}),
        defined(
            a={"$ref": "#/$defs/b"}, b={"$ref": "#/$defs/c"}, c={"type": "array", "items": {"$ref": "#"}}
        ),
        {"properties": {"$ref": {"type": "string"}}},
        {"$ref": "#/$defs/nothing"},
        {"$ref": "https://example.org/schema"},
    ],
)
def test_a_schema_may_refer_to_itself_within_itself(schema: Any) -> None:
    assert Grammar.json(schema)
    assert asking(tools=[tool(parameters=schema)], tool_choice="required")


def test_what_a_tool_was_when_the_request_was_made_is_what_the_model_is_shown() -> None:
    description = tool(parameters={"type": "object", "properties": {"a": {}}})
    request = asking(tools=[description])
    description["function"]["parameters"]["properties"]["b"] = {}
    (shown,) = tools_of(request)
    assert list(shown["function"]["parameters"]["properties"]) == ["a"]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match="Two tools are called 'f'"):
        asking(tools=[TOOL, tool(parameters={"type": "object", "required": ["a"]})])


@pytest.mark.parametrize(
    "name", ["f", "get-time", "wettér_天気", "🌤", "ns.f", "ns::f", "a/b", "1a", "x" * 200]
)
def test_names_beyond_ascii_and_with_signs_are_names(name: str) -> None:
    assert asking(tools=[tool(name=name)], tool_choice=ToolChoice(name)).tools


def test_wrong_tools_of_one_caller_do_not_count_as_crashes_of_the_plugin() -> None:
    with InferenceEngine(backend="mock") as engine:
        model = engine.load_text("org/name")
        for _ in range(4):
            with pytest.raises(InvalidParameterError):
                model.generate("x", tools=[tool(parameters="x")], tool_choice="required")
        assert engine.health().state == "healthy"
