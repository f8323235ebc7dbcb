"""What a request will be given as is told beforehand, exactly, and without a step on the device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from llm_harness import TEMPLATE, Plugin, write_tiny
from mlxengine import (
    AsyncInferenceEngine,
    GenerateParams,
    InferenceEngine,
    Message,
    Prepared,
    PrepareRequest,
    ReasoningDelta,
    ReasoningPart,
    TextDelta,
    TextHandle,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolResultPart,
)
from mlxengine.errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from test_parts import joined, weather

AGENTS = (
    "{% if tools %}<tool_call>{{ tools | tojson }}{# tool_call.name #}{% endif %}"
    "{% for m in messages if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endfor %}"
    + TEMPLATE
    + "{% if enable_thinking is false %}<think></think>{% endif %}"
)
CONVERSATION = (
    Message.system("Be brief."),
    Message.user("How is it? <|im_end|>"),
    Message.assistant([ReasoningPart("Hm."), ToolCallPart("1", "weather", {"city": "Wien"})]),
    Message.tool(ToolResultPart("1", "weather", "sunny")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(
        tmp_path_factory.mktemp("agents") / "model", extra=["<think>", "</think>"], template=AGENTS
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[TextHandle]:
    with InferenceEngine() as engine:
        yield engine.load_text(folder)


@pytest.mark.parametrize(
    "asked",
    [
        TextRequest(messages=CONVERSATION, tools=[weather]),
        TextRequest(messages=CONVERSATION, instructions="Speak.", params=GenerateParams(thinking=False)),
        TextRequest(messages=[*CONVERSATION, Message.assistant("It is")], continue_final_message=True),
        TextRequest(messages=CONVERSATION, add_generation_prompt=False),
        TextRequest(prompt="Once upon a time"),
        TextRequest(prompt_tokens=[5, 6, 7]),
    ],
    ids=["tools", "switch", "continued", "closed", "raw", "tokens"],
)
def test_the_count_is_what_the_answers_usage_says(model: TextHandle, asked: TextRequest) -> None:
    short = attrs.evolve(asked, params=attrs.evolve(asked.params, max_tokens=1))
    assert model.count(asked) == model.generate(short).usage.prompt_tokens > 0


def test_nothing_is_computed_for_it(plugin: Plugin, folder: Path) -> None:
    model = plugin.load(folder)

    class Untouched:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the network was asked for {name}")

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("the network was run")

    network, model.network = model.network, Untouched()
    (events,) = plugin.run(
        [plugin.start(model, PrepareRequest(request=TextRequest(messages=CONVERSATION, tools=[weather])))]
    )
    model.network = network
    assert isinstance(events[0], Prepared)
    assert model.tokenizer.decode(events[0].token_ids) == events[0].text
    assert model.batch.inside == 0


def test_the_rendered_text_and_the_tokens_of_any_text_are_told(model: TextHandle) -> None:
    text = model.render("Hi")
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert model.count("Hi") == len(model.tokenize(text))
    assert model.render("Hi", chat_template_kwargs={"enable_thinking": False}).endswith("<think></think>")
    assert "weather" in model.render(CONVERSATION, tools=[weather])
    with pytest.raises(InvalidParameterError, match="no text of them"):
        model.render(TextRequest(prompt_tokens=[5]))


def test_what_an_answer_would_be_refused_with_is_what_a_count_is_refused_with(model: TextHandle) -> None:
    for request, error in (
        (TextRequest(messages=[Message.user("x " * 5000)]), PromptTooLongError),
        (TextRequest(messages=CONVERSATION, chat_template_kwargs={"nobody": 1}), InvalidParameterError),
        (
            TextRequest(messages=CONVERSATION, params=GenerateParams(reasoning_effort="low")),
            UnsupportedInputError,
        ),
    ):
        for ask in (model.count, model.generate):
            with pytest.raises(error):
                ask(request)


def test_the_same_is_told_under_asyncio(folder: Path, model: TextHandle) -> None:
    async def told() -> tuple[int, str, tuple[int, ...]]:
        async with AsyncInferenceEngine() as engine:
            handle = await engine.load_text(folder)
            count = await handle.count(CONVERSATION, tools=[weather])
            return count, await handle.render("Hi"), await handle.tokenize("Hi")

    count = model.count(CONVERSATION, tools=[weather])
    assert asyncio.run(told()) == (count, model.render("Hi"), model.tokenize("Hi"))


def test_a_continued_turn_goes_on_in_what_it_began(model: TextHandle) -> None:
    begun = TextRequest(
        messages=[Message.user("x"), Message.assistant("One, two")], continue_final_message=True
    )
    assert model.render(begun).endswith("<|im_start|>assistant\nOne, two")


@pytest.mark.feature("llm.reasoning")
def test_reasoning_that_is_continued_is_told_apart_from_the_answer(folder: Path, plugin: Plugin) -> None:
    template = (
        "{% for m in messages %}<think>{{ m.reasoning_content }}"
        "{% if m.content %}</think>{{ m.content }}{% endif %}{% endfor %}"
    )
    model = plugin.load(folder, chat_template=template)
    messages = [Message.assistant([ReasoningPart("First"), TextPart("")])]
    stream = plugin.start(model, TextRequest(messages=messages, continue_final_message=True))
    answer = stream.answers()._answer
    events = [*answer.router.feed(" I look.</think>Done."), *answer.router.finish()]
    stream.close()
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == (" I look.", "Done.")
