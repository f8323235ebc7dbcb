"""Formats of answers and of conversations that are unlike most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_harness import TEMPLATE, Plugin, card_of, write_tiny
from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT
from mlxengine import (
    Device,
    LoadContext,
    Message,
    ReasoningDelta,
    TextDelta,
    TextRequest,
    ToolCall,
)
from mlxengine.text.messages import Role, ToolCallPart, ToolResultPart
from mlxengine.toolkit.speech import Router
from mlxengine_llm._tokenizer import load_tokenizer
from test_parts import joined, say

K3 = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]


def history(*calls: ToolCallPart) -> tuple[Message, ...]:
    results = (ToolResultPart(id=item.id, name=item.name, content="sunny") for item in calls)
    return (
        Message.user("How is it?"),
        Message(role=Role.ASSISTANT, parts=calls),
        *(Message(role=Role.TOOL, parts=(item,)) for item in results),
    )


@pytest.mark.feature("llm.reasoning")
def test_a_marker_in_what_somebody_says_opens_no_reasoning(plugin: Plugin, tmp_path: Path) -> None:
    model = plugin.load(write_tiny(tmp_path / "model", extra=["<think>", "</think>"]))
    for message in (Message.user("what does <think> do?"), Message.user("<think>")):
        events = say(
            plugin, model, "it thinks", tools=(), message=message, flags={"special_tokens_in_text": True}
        )
        assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("", "it thinks")


@pytest.mark.feature("llm.reasoning")
def test_structural_markers_are_no_text_without_tools_either(plugin: Plugin, tmp_path: Path) -> None:
    model = plugin.load(write_tiny(tmp_path / "model", extra=K3))
    said = (
        "<|open|>think<|sep|>hm<|close|>think<|sep|><|open|>response<|sep|>Hello."
        "<|close|>response<|sep|><|close|>message<|sep|>"
    )
    events = say(plugin, model, said, tools=())
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("hm", "Hello.")


def test_the_headers_of_muse_spark_are_followed_with_and_without_tools(
    plugin: Plugin, tmp_path: Path
) -> None:
    template = "<atem:function_calls>" + TEMPLATE
    dialect = plugin.load(write_tiny(tmp_path / "muse", template=template)).dialect
    said = (
        "to=self<|message|>hm<|eom|><|start|>assistant to=weather<|message|><atem:function_calls>"
        '<atem:invoke name="weather"></atem:invoke></atem:function_calls>'
    )

    def events(text: str, tools: Any) -> list[Any]:
        router = Router(dialect, dialect.calls, tools)
        return [event for letter in text for event in router.feed(letter)] + router.finish()

    found = events(said, {"weather": {}})
    assert joined(found, ReasoningDelta) == "hm"
    assert [(item.name, dict(item.arguments)) for item in found if isinstance(item, ToolCall)] == [
        ("weather", {})
    ]
    assert joined(found, TextDelta) == ""
    plain = events("to=self<|message|>hm<|eom|><|start|>assistant to=user<|message|>Hello.", {})
    assert (joined(plain, ReasoningDelta), joined(plain, TextDelta)) == ("hm", "Hello.")
    assert joined(events("no header", {}), TextDelta) == "no header"


def test_what_muse_spark_leaves_out_of_its_files_is_what_mlx_lm_says(plugin: Plugin, tmp_path: Path) -> None:
    """Its checkpoints name neither the format of their chats nor the tokens that end an answer."""
    folder = write_tiny(tmp_path / "muse", template="")
    card = card_of(folder)
    context = LoadContext(
        path=folder,
        configuration=card.configuration,
        features=plugin.features(),
        device=Device.detect(),
    )
    found = load_tokenizer(card, folder, context, {"model_type": "muse_spark"})
    assert found.init_kwargs["tool_parser_type"] == "muse_spark"
    assert found.response_transitions == RESPONSE_FORMAT["transitions"]
    assert {200001, 200008} <= set(found.eos_token_ids)


CALLS = "{% for m in messages %}{% for c in m.tool_calls or [] %}CALL %{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("{{ 'args: ' + c.function.arguments }}", 'args: {"city": "Wien <b>"}'),
        ("{{ c.function.arguments }}", '{"city": "Wien <b>"}'),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "city=Wien <b>"),
        ("{{ c.function.arguments.city ~ '!' }}", "Wien <b>!"),
    ],
    ids=["joined", "printed", "items", "attribute"],
)
def test_a_template_gets_the_arguments_of_calls_as_it_wants_them(
    plugin: Plugin, tmp_path: Path, written: str, seen: str
) -> None:
    template = CALLS.replace("%{%", written + "{%", 1) + TEMPLATE
    model = plugin.load(write_tiny(tmp_path / "model", template=template))
    messages = (
        Message.user("I have seen {'city': 'Wien <b>'}"),
        *history(ToolCallPart("1", "weather", {"city": "Wien <b>"})),
    )
    tokens = model.prompts.make(TextRequest(messages=messages)).ids
    assert f"CALL {seen}" in model.tokenizer.decode(tokens)
