"""Pictures and sound in what a request will be given as: counted, placed, beside tools and switches."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from mlxengine import (
    GenerateParams,
    ImagePart,
    Message,
    Prepared,
    PrepareRequest,
    ReasoningPart,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolResultPart,
)
from mlxengine.errors import UnsupportedInputError
from mlxengine_vlm import _processor
from mlxengine_vlm._media import MediaLimits
from mlxengine_vlm._prompt import Media
from vlm_harness import TINY, Plugin, asking
from vlm_pictures import Thing, draw

GREEN, BLUE = draw([Thing("circle", "green")]), draw([Thing("square", "blue")])
SHAPE = "What shape is this?"
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
# The trained model's template, with what agents' templates have besides.
AGENTS = (
    "{% if tools %}Tools: {{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role | capitalize }}: "
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% for c in m.tool_calls or [] %}"
    "call {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    "{% if enable_thinking is false %} At once:{% endif %}"
)


def prepared(plugin: Plugin, model: Any, request: TextRequest) -> Prepared:
    (events,) = plugin.run([plugin.start(model, PrepareRequest(request=request))])
    assert not isinstance(events[0], Exception), events[0]
    assert isinstance(events[0], Prepared)
    return events[0]


@pytest.fixture(scope="module")
def agent(plugin: Plugin) -> Any:
    """The trained model with a template of agents."""
    return plugin.load(TINY, chat_template=AGENTS)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_count_is_what_the_answers_usage_says_pictures_included(
    plugin: Plugin, tiny: Any, pictures: int
) -> None:
    request = asking(SHAPE, *[GREEN] * pictures, max_tokens=1)
    (events,) = plugin.run([plugin.start(tiny, request)])
    told = prepared(plugin, tiny, request)
    assert len(told.token_ids) == events[-1].usage.prompt_tokens
    assert list(told.token_ids).count(tiny.image_token) % max(pictures, 1) == 0
    assert told.text is not None
    assert told.text.count("<image>") == pictures


def test_nothing_of_a_picture_is_prepared_on_the_thread_of_the_device(
    plugin: Plugin, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = _processor.prepare

    def noted(*arguments: Any, **more: Any) -> Any:
        seen.append(threading.current_thread())
        return real(*arguments, **more)

    monkeypatch.setattr("mlxengine_vlm._prompt.prepare", noted)
    assert plugin.answer(tiny, asking(SHAPE, GREEN)).strip()
    assert len(seen) == 1
    assert threading.current_thread() not in seen


def test_nothing_is_computed_for_a_count(plugin: Plugin, tiny: Any) -> None:
    network, tiny.network = tiny.network, None
    try:
        assert prepared(plugin, tiny, asking(SHAPE, GREEN)).token_ids
    finally:
        tiny.network = network
    assert tiny.batch.inside == 0


def test_tools_calls_and_reasoning_reach_the_template(agent: Any) -> None:
    said = Message.assistant([ReasoningPart("Hm."), ToolCallPart("1", "look", {"at": "it"})])
    request = TextRequest(messages=[Message.user(SHAPE), said], tools=[LOOK])
    text = agent.prompts.make(request, True, Media(agent, MediaLimits())).text
    assert text.startswith('Tools: [{"type": "function", "function": {"name": "look"')
    assert 'Assistant: (Hm.)call look {"at": "it"}<end_of_utterance>' in text


def test_a_switch_for_reasoning_goes_to_a_template_that_has_it(plugin: Plugin, agent: Any, tiny: Any) -> None:
    request = asking(SHAPE, thinking=False)
    told = prepared(plugin, agent, request)
    assert told.text is not None
    assert told.text.endswith("Assistant: At once:")
    plugin.answer(tiny, request)  # it does not reason
    with pytest.raises(UnsupportedInputError, match="no choice of thinking"):
        plugin.answer(tiny, asking(SHAPE, thinking=True))


def test_a_picture_in_a_tools_result_is_seen(plugin: Plugin, agent: Any) -> None:
    def request(picture: Any) -> TextRequest:
        result = ToolResultPart("1", "look", "Here.", images=[ImagePart(picture)])
        return TextRequest(
            messages=[
                Message.user([ImagePart(BLUE), TextPart(SHAPE)]),
                Message.assistant([ToolCallPart("1", "look", {})]),
                Message.tool(result),
            ],
            params=GenerateParams(max_tokens=2, logprobs=True, ignore_eos=True),
        )

    told = prepared(plugin, agent, request(GREEN))
    assert told.text is not None
    assert "Tool: Here.<image><end_of_utterance>" in told.text
    media = Media(agent, MediaLimits())
    agent.prompts.make(request(GREEN), True, media)
    other = Media(agent, MediaLimits())
    agent.prompts.make(request(BLUE), True, other)
    assert [len(item.digests) for item in (media, other)] == [2, 2]
    assert media.digests[0] == other.digests[0] == other.digests[1] != media.digests[1]
    answers = plugin.run([plugin.start(agent, request(item)) for item in (GREEN, BLUE)])
    first, second = (events[0].logprobs[0].logprob for events in answers)
    assert first != second


def test_a_continued_answer_about_a_picture_ends_where_its_text_does(plugin: Plugin, tiny: Any) -> None:
    asked = asking("Describe the picture as JSON.", GREEN)
    first, word, rest = plugin.answer(tiny, asked).strip().partition("shape")  # where a token begins
    assert rest
    begun = attrs.evolve(
        asked, messages=[*asked.messages, Message.assistant(first)], continue_final_message=True
    )
    told = prepared(plugin, tiny, begun)
    assert told.text is not None
    assert told.text.endswith(f"Assistant: {first}")
    assert plugin.answer(tiny, begun) == word + rest


def test_arrays_that_a_processor_leaves_to_be_computed_can_be_used_by_the_device(
    plugin: Plugin, tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = _processor.prepare

    def lazily(*arguments: Any, **more: Any) -> Any:
        made = real(*arguments, **more)
        return {name: value * 1 if isinstance(value, mx.array) else value for name, value in made.items()}

    asked = asking(SHAPE, GREEN)
    usual = plugin.answer(tiny, asked)
    monkeypatch.setattr("mlxengine_vlm._prompt.prepare", lazily)
    tiny.prefixes.clear()
    tiny.features.clear()
    assert plugin.answer(tiny, asked) == usual
