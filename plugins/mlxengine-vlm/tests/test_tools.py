"""Tools and reasoning on the trained model: what language models keep, with pictures to look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlxengine import Grammar, ImagePart, InferenceEngine, Message, ReasoningDelta, TextDelta, TextPart
from mlxengine.errors import FeatureUnavailableError
from vlm_harness import TINY, Plugin, asking, text_of
from vlm_pictures import Thing, draw

from tests.tool_calls import (  # noqa: F401
    beginning,
    test_a_forced_call_fits_its_schema_50_of_50,
    test_each_of_sixteen_that_want_different_things_equals_its_solo_run,
    test_one_call_where_parallel_calls_are_ruled_out_and_none_where_tools_are,
    test_required_calls_are_valid_with_and_without_reasoning,
    tool,
)

pytestmark = [
    pytest.mark.feature("vlm.tool_calling"),
    pytest.mark.feature("vlm.reasoning"),
    pytest.mark.feature("vlm.structured_output"),
]

RED = draw([Thing("circle", "red")])
THINK = ("<think>", "</think>")


def thinking_model(folder: Path, shown: str) -> Path:
    """The trained model, its last two tokens made marks of reasoning, with a notation of calls."""
    shutil.copytree(TINY, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for mark, token in zip(THINK, (452, 453), strict=True):
        (old,) = [text for text, number in vocabulary.items() if number == token]
        del vocabulary[old]
        vocabulary[mark] = token
        tokenizer["model"]["merges"] = [
            pair for pair in tokenizer["model"]["merges"] if "".join(pair).replace(" ", "") != old
        ]
        like = tokenizer["added_tokens"][0]
        tokenizer["added_tokens"].append({**like, "id": token, "content": mark})
    file.write_text(json.dumps(tokenizer))
    template = folder / "chat_template.jinja"
    switch = "{% if enable_thinking %}{% endif %}"
    template.write_text("{# " + shown + " #}" + switch + template.read_text())
    return folder


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("tool_call.name <tool_call>", id="json"),
        pytest.param("<arg_key>", id="tags", marks=pytest.mark.slow),
    ],
)
def model(request: Any, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained model, speaking in one notation or another."""
    folder = tmp_path_factory.mktemp("tools") / "model"
    return plugin.load(thinking_model(folder, request.param))


@pytest.fixture
def message() -> Message:
    """A question about a picture."""
    return Message.user([ImagePart(RED), TextPart("What shape is this?")])


def test_its_handle_says_that_it_reasons_and_calls(tmp_path: Path) -> None:
    folder = thinking_model(tmp_path / "model", "<arg_key>")
    with InferenceEngine() as engine, engine.load_text(folder) as handle:
        assert {"tools", "reasoning", "vision"} <= handle.capabilities


def test_reasoning_is_parted_bounded_and_followed_by_the_grammar(plugin: Plugin, model: Any) -> None:
    request = asking("What shape is this?", RED, thinking_budget=5, grammar=Grammar.choices(["yes", "no"]))
    (events,) = plugin.run([beginning(plugin, model, request, "<think>circle")])
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert reasoning.startswith("circle")
    assert text_of(events) in ("yes", "no")
    assert events[-1].usage.reasoning_tokens == 5
    plain = asking("What shape is this?", RED)
    (whole,) = plugin.run([beginning(plugin, model, plain, "<think>a</think>b")])
    assert [event.text for event in whole if isinstance(event, ReasoningDelta)] == ["a"]
    assert "".join(event.text for event in whole if isinstance(event, TextDelta)).startswith("b")
    with pytest.raises(FeatureUnavailableError):
        plugin.start(model, asking("?", RED, thinking_budget=5), reasoning=False)


def test_the_template_is_given_the_tools_and_whether_to_think(plugin: Plugin, tmp_path: Path) -> None:
    from attrs import evolve

    shown = "<arg_key> #}{% if tools %}{{ tools[0].function.name }}{{ enable_thinking }}{% endif %}{# "
    model = plugin.load(thinking_model(tmp_path / "model", shown))
    request = evolve(asking("?", RED, thinking=False), tools=(tool("weather"),))
    answer = plugin.admitted(model, request)._answer
    assert "weatherFalse" in model.dialect.tokenizer.decode(answer.prompt)
