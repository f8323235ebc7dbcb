"""Tool calls and reasoning, parted from the text: nothing lost, whatever the model writes."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest
from llm_harness import TEMPLATE, Plugin, write_tiny
from mlxengine import (
    Finished,
    GenerateParams,
    Message,
    ReasoningDelta,
    TextDelta,
    TextRequest,
    ToolCall,
    ToolCallDelta,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnsupportedInputError
from mlxengine.text.messages import ToolCallPart
from mlxengine.text.tools import call, describe

# What a template that mlx-lm recognises names: the markers, and how a call is written.
TOOLS = "{% if tools %}<tool_call>{{ tools }}{# tool_call.name #}{% endif %}" + TEMPLATE
WEATHER = '<tool_call>{"name": "weather", "arguments": {"city": "Wien"}}</tool_call>'


def weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    """The weather in a city.

    city: its name
    """
    if city == "Nowhere":
        raise LookupError("no such city")
    return f"sunny in {city}, 20 {unit}"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talker") / "model"
    return write_tiny(folder, extra=["<think>", "</think>"], template=TOOLS)


def say(plugin: Plugin, model: Any, text: str, *, end: bool = True, **more: Any) -> list[Any]:
    """The events when the model says this text, token by token."""
    flags = more.pop("flags", {})
    tools = more.pop("tools", (weather,))
    message = more.pop("message", Message.user("x"))
    params = GenerateParams(max_tokens=more.pop("max_tokens", 300), **more)
    request = TextRequest(messages=(message,), tools=tools, params=params)
    stream = plugin.start(model, request, **flags)
    script = [*model.tokenizer.encode(text, add_special_tokens=False), *([2] if end else [])]
    answer = stream.answers()._answer

    def force(tokens: mx.array, logits: mx.array) -> mx.array:
        at = min(tokens.size - len(answer.prompt), len(script) - 1)
        return mx.where(mx.arange(logits.shape[-1]) == script[at], 0.0, -mx.inf)[None]

    answer.processors.insert(0, force)
    (events,) = plugin.run([stream])
    return events


def joined(events: list[Any], kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


@pytest.mark.parametrize("most", [5, 12, 300])
def test_each_token_has_its_log_probability_also_where_the_answer_ends_within_its_reasoning(
    plugin: Plugin, talker: Path, most: int
) -> None:
    params = {"max_tokens": most, "logprobs": True}
    events = say(plugin, plugin.load(talker), "<think>one two three", tools=(), end=False, **params)
    scores = [item for event in events if isinstance(event, TextDelta) for item in event.logprobs]
    assert events[-1].usage.reasoning_tokens == events[-1].usage.completion_tokens == most
    assert len(scores) == most


@pytest.mark.feature("llm.tool_calling")
def test_calls_become_events_and_the_text_around_them_stays(plugin: Plugin, talker: Path) -> None:
    events = say(plugin, plugin.load(talker), f"Let me see. {WEATHER}{WEATHER} Done < tool.")
    calls = [event for event in events if isinstance(event, ToolCall)]
    assert [(item.name, dict(item.arguments)) for item in calls] == [("weather", {"city": "Wien"})] * 2
    assert len({item.id for item in calls}) == 2
    assert joined(events, TextDelta) == "Let me see.  Done < tool."
    assert events[-1].reason == "tool_calls"
    ids = [token for event in events if isinstance(event, TextDelta) for token in event.token_ids]
    assert len(ids) == events[-1].usage.completion_tokens - 1


@pytest.mark.parametrize(
    ("said", "raw"),
    [
        ('<tool_call>{"name": "weather", "arg</tool_call>', '{"name": "weather", "arg'),
        ('<tool_call>{"name": "weather", "arguments": 5}</tool_call>', '{"name": "weather", "arguments": 5}'),
        ('<tool_call>{"name": "wea', '{"name": "wea'),
        ("<tool_call>rubbish</tool_call>", "rubbish"),
    ],
)
def test_a_malformed_call_is_an_event_with_its_raw_text(
    plugin: Plugin, talker: Path, said: str, raw: str
) -> None:
    events = say(plugin, plugin.load(talker), f"Hm. {said}")
    (found,) = [event for event in events if isinstance(event, ToolCall)]
    assert (found.arguments, found.raw) == (None, raw)
    assert found.error
    assert joined(events, TextDelta) == "Hm. "


def test_what_only_begins_like_a_marker_is_text(plugin: Plugin, talker: Path) -> None:
    events = say(plugin, plugin.load(talker), "a <tool_cal")
    assert joined(events, TextDelta) == "a <tool_cal"
    assert events[-1].reason == "stop"
    plain = say(plugin, plugin.load(talker), WEATHER, tools=())
    assert joined(plain, TextDelta) == WEATHER, "without tools there are no calls"


@pytest.mark.feature("llm.reasoning")
def test_reasoning_is_parted_from_the_answer(plugin: Plugin, talker: Path) -> None:
    model = plugin.load(talker)
    events = say(plugin, model, "<think>one two</think>three", tools=())
    assert joined(events, ReasoningDelta) == "one two"
    assert joined(events, TextDelta) == "three"
    both = say(plugin, model, f"<think>hm</think>{WEATHER}")
    assert joined(both, ReasoningDelta) == "hm"
    assert [type(event) for event in both if isinstance(event, ToolCall)] == [ToolCall]
    whole = say(plugin, model, "<think>one</think>two", tools=(), flags={"reasoning": False})
    assert joined(whole, TextDelta) == "<think>one</think>two"


@pytest.mark.parametrize("streaming", [True, False])
def test_tokens_of_the_reasoning_are_counted_however_the_answer_is_told(
    plugin: Plugin, talker: Path, streaming: bool
) -> None:
    model, flags = plugin.load(talker), {"streaming": streaming}
    events = say(plugin, model, "<think>one two</think>three", tools=(), flags=flags)
    usage = events[-1].usage
    assert usage.reasoning_tokens == len(["<think>", *"one two"])
    assert usage.completion_tokens == len(["<think>", *"one two", "</think>", *"three", "end"])
    told = [event for event in events if isinstance(event, ReasoningDelta)]
    assert sum(len(event.token_ids) for event in told) == usage.reasoning_tokens
    assert len(told) == (7 if streaming else 1)
    assert joined(events, ReasoningDelta) == "one two"
    assert joined(events, TextDelta) == "three"
    mixed = say(plugin, model, f"<think>hm</think>ab{WEATHER}cd", flags=flags)
    assert mixed[-1].usage.reasoning_tokens == len(["<think>", *"hm"])
    order = [kind for kind, _ in groupby(mixed, key=type)]
    assert order == [
        ReasoningDelta,
        TextDelta,
        *([ToolCallDelta] if streaming else []),
        ToolCall,
        TextDelta,
        Finished,
    ]
    assert joined(mixed, TextDelta) == "abcd"
    assert say(plugin, model, "none at all", tools=(), flags=flags)[-1].usage.reasoning_tokens == 0


@pytest.mark.feature("llm.tool_calling")
def test_a_call_that_max_tokens_cuts_has_no_arguments(plugin: Plugin, talker: Path) -> None:
    events = say(plugin, plugin.load(talker), WEATHER, max_tokens=len(WEATHER) - 20)
    (found,) = [event for event in events if isinstance(event, ToolCall)]
    assert (found.name, found.arguments, found.error) == (
        "weather",
        None,
        "the answer ended within the call",
    )
    assert events[-1].reason == "length"


def test_a_template_that_begins_the_reasoning_is_followed(plugin: Plugin, tmp_path: Path) -> None:
    template = TEMPLATE.replace("assistant\n", "assistant\n<think>")
    folder = write_tiny(tmp_path / "model", extra=["<think>", "</think>"], template=template)
    events = say(plugin, plugin.load(folder), "one</think>two", tools=())
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("one", "two")


def test_a_thinking_budget_ends_the_reasoning(plugin: Plugin, talker: Path) -> None:
    model = plugin.load(talker)
    events = say(plugin, model, "<think>0123456789</think>after", tools=(), thinking_budget=5)
    assert joined(events, ReasoningDelta) == "0123"
    free = say(plugin, model, "no reasoning at all", tools=(), thinking_budget=5)
    assert joined(free, TextDelta) == "no reasoning at all"


@pytest.mark.parametrize(
    ("budget", "thought", "said"),
    [
        (7, "", None),  # all of it is the mark that begins the reasoning
        (12, "01234", None),
        (17, "0123456789", "after"),
        (19, "0123456789", "after"),  # in the middle of what ends it
        (40, "0123456789", "after"),
    ],
)
def test_a_thinking_budget_ends_reasoning_whose_marks_are_several_tokens(
    plugin: Plugin, tmp_path: Path, budget: int, thought: str, said: str | None
) -> None:
    marks = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]
    model = plugin.load(write_tiny(tmp_path / "model", extra=marks))
    assert model.dialect.think_ids[1][1:-1] == tuple(model.tokenizer.encode("think"))
    text = "<|open|>think<|sep|>0123456789<|close|>think<|sep|><|open|>response<|sep|>after"
    events = say(plugin, model, text, tools=(), thinking_budget=budget)
    assert joined(events, ReasoningDelta) == thought
    if said is not None:
        assert joined(events, TextDelta) == said
    ids = [token for event in events for token in getattr(event, "token_ids", ())]
    assert ids[budget : budget + 7] == list(model.dialect.think_ids[1]) or said is not None


def test_tools_and_budgets_that_cannot_be_served_are_refused(
    plugin: Plugin, talker: Path, tiny: Path
) -> None:
    model, plain = plugin.load(talker), plugin.load(tiny)
    with pytest.raises(UnsupportedInputError, match="tool calls"):
        say(plugin, plain, "x")
    with pytest.raises(UnsupportedInputError, match="reasoning"):
        say(plugin, plain, "x", tools=(), thinking_budget=3)
    with pytest.raises(FeatureUnavailableError):
        say(plugin, model, "x", flags={"tool_calling": False})
    with pytest.raises(InvalidParameterError, match="messages"):
        plugin.start(model, TextRequest(prompt="x", tools=(weather,)))


def test_a_function_is_described_by_its_signature_and_docstring() -> None:
    found = describe(weather)
    assert found["function"] == {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "its name"},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    }
    assert describe(found) is found

    def many(a: int, b: list[float], c: bool | None = None, *, d: dict[str, int] | str = "") -> None: ...

    properties = describe(many)["function"]["parameters"]["properties"]
    assert properties["b"] == {"type": "array", "items": {"type": "number"}}
    assert properties["c"] == {"type": "boolean"}
    assert properties["d"] == {"anyOf": [{"type": "object"}, {"type": "string"}]}

    def star(*rest: int) -> None: ...

    def strange(a: Path) -> None: ...

    for wrong in (star, strange, 5):
        with pytest.raises(InvalidParameterError):
            describe(wrong)  # type: ignore[arg-type]


def test_what_a_tool_raises_is_shown_to_the_model() -> None:
    good = call([weather], ToolCallPart("1", "weather", {"city": "Wien"}))
    assert (good.content, good.error) == ("sunny in Wien, 20 C", False)
    for wrong in (
        ToolCallPart("2", "weather", {"city": "Nowhere"}),
        ToolCallPart("3", "weather", {"town": "Wien"}),
        ToolCallPart("4", "wether", {}),
    ):
        assert call([weather], wrong).error


def test_the_last_event_is_the_only_end(plugin: Plugin, talker: Path) -> None:
    events = say(plugin, plugin.load(talker), WEATHER)
    assert [isinstance(event, Finished) for event in events].count(True) == 1
