"""Answers in harmony, the format of gpt-oss: channels become events, and a conversation is written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, write_tiny
from mlxengine import Grammar, InferenceEngine, ReasoningDelta, TextDelta, TextRequest, ToolCall
from mlxengine.text.messages import ToolCallPart
from mlxengine.toolkit.speech import Router
from test_formats import history
from test_parts import joined, say, weather

MARKERS = [f"<|{name}|>" for name in ("start", "channel", "message", "end", "call", "return", "constrain")]
# The structure of gpt-oss's template: a call is a message to its function, its result one from it.
TEMPLATE = (
    "{% set last = namespace(name='') %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>"
    "{% elif m.tool_calls %}{% set f = m.tool_calls[0].function %}{% set last.name = f.name %}"
    "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>"
    "{{ f.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THINKS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ARGUMENTS = '{"city": "Wien"}'
CALL = f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>"


@pytest.fixture(scope="module")
def harmonic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("harmonic") / "model", extra=MARKERS, template=TEMPLATE)


def test_its_handle_says_that_it_reasons_and_calls(harmonic: Path) -> None:
    with InferenceEngine() as engine, engine.load_text(harmonic) as model:
        assert {"tools", "reasoning"} <= model.capabilities


def calls(events: list[Any]) -> list[Any]:
    found = [event for event in events if isinstance(event, ToolCall)]
    return [(item.name, None if item.arguments is None else dict(item.arguments)) for item in found]


@pytest.mark.feature("llm.reasoning")
def test_channels_are_parted_into_reasoning_and_text(plugin: Plugin, harmonic: Path) -> None:
    model = plugin.load(harmonic)
    events = say(plugin, model, f"{THINKS}<|channel|>final<|message|>Hello.<|return|>", tools=())
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("Hm.", "Hello.")
    assert len([event for event in events if isinstance(event, TextDelta)]) > 3, "it is streamed"
    preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    both = say(plugin, model, f"{preamble}<|channel|>final<|message|>Done", tools=())
    assert joined(both, TextDelta) == "I look.Done"
    assert joined(say(plugin, model, "No markers at all.", tools=()), TextDelta) == "No markers at all."
    whole = say(plugin, model, THINKS, tools=(), flags={"reasoning": False})
    assert joined(whole, TextDelta) == THINKS


@pytest.mark.feature("llm.tool_calling")
@pytest.mark.parametrize(
    "call",
    [CALL, f" to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>"],
    ids=["in-the-channel", "in-the-role"],
)
def test_messages_to_functions_are_calls(plugin: Plugin, harmonic: Path, call: str) -> None:
    events = say(plugin, plugin.load(harmonic), f"{THINKS}{call}<|start|>assistant{call}", tools=(weather,))
    assert calls(events) == [("weather", {"city": "Wien"})] * 2
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("Hm.", "")
    assert events[-1].reason == "tool_calls"


def test_a_call_that_breaks_off_anywhere_has_no_arguments(plugin: Plugin, harmonic: Path) -> None:
    model = plugin.load(harmonic)
    tokenizer = model.tokenizer

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    said, size, prompt = encode(CALL * 2), len(encode(CALL)), encode("<|start|>assistant")
    begins = len(encode(CALL.partition("eather")[0]))
    for cut in range(1, 2 * size + 1):
        router = Router(model.dialect, None, {"weather": {}}, prompt)
        events = [*router.feed(tokenizer.decode(said[:cut])), *router.finish()]
        whole = (cut >= size - 1) + (cut >= 2 * size - 1)
        begun = (cut >= begins) + (cut >= size + begins)
        found = [item for _, item in calls(events)]
        assert found == [{"city": "Wien"}] * whole + [None] * (begun - whole), cut
        assert joined(events, TextDelta) == "", cut


@pytest.mark.feature("llm.structured_output")
def test_a_grammar_holds_for_the_final_message(plugin: Plugin, harmonic: Path) -> None:
    model = plugin.load(harmonic)
    for header in ("final", "final <|constrain|>json"):
        said = f"{THINKS}<|channel|>{header}<|message|>yes"
        events = say(plugin, model, said, tools=(), grammar=Grammar.choices(["yes", "no"]))
        assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("Hm.", "yes")


def test_a_conversation_with_calls_is_written_back(plugin: Plugin, harmonic: Path) -> None:
    model = plugin.load(harmonic)
    messages = history(ToolCallPart("1", "weather", {"city": "Wien"}))
    text = model.tokenizer.decode(model.prompts.make(TextRequest(messages=messages)).ids)
    result = "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"
    assert text == (
        "<|start|>user<|message|>How is it?<|end|>"
        f"<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>"
        f'{result}"sunny"<|end|><|start|>assistant'
    )
