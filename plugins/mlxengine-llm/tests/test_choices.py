"""Several answers to one request: the prompt is read once, and each answer is what it would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, tokens_of
from mlxengine import ChoiceFinished, Finished
from mlxengine.errors import InvalidParameterError
from mlxengine.text.replies import TextReply

PROMPT = "a prompt of more than sixteen tokens"


def of(events: list[Any], index: int) -> list[int]:
    return tokens_of([event for event in events if event.index == index])


def test_each_of_n_answers_equals_its_solo_run(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    base: dict[str, Any] = {"max_tokens": 20, "temperature": 1.0, "ignore_eos": True}
    alone = [
        tokens_of(plugin.run([plugin.start(model, raw(PROMPT, seed=5 + i, **base), prompt_cache=False)])[0])
        for i in range(3)
    ]
    (events,) = plugin.run([plugin.start(model, raw(PROMPT, seed=5, n=3, **base), prompt_cache=False)])
    assert [of(events, i) for i in range(3)] == alone
    assert [type(event) for event in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 60
    assert sorted(event.index for event in events if isinstance(event, ChoiceFinished)) == [0, 1, 2]


def test_the_prompt_is_read_once(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    read: list[int] = []
    whole = model.network

    class Counting:
        layers = whole.layers

        def __call__(self, tokens: Any, **more: Any) -> Any:
            read.append(tokens.size)
            return whole(tokens, **more)

    model.network = Counting()
    request = raw(PROMPT * 4, n=4, max_tokens=3, temperature=1.0, ignore_eos=True)
    plugin.run([plugin.start(model, request, prompt_cache=False)])
    assert sum(size for size in read if size > 4) < 2 * len(PROMPT * 4)


def test_a_reply_holds_every_choice_with_its_own_reason(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    (events,) = plugin.run([plugin.start(model, raw(PROMPT, n=2, max_tokens=4, temperature=1.0, seed=1))])
    reply = TextReply.of(events)
    assert len(reply.choices) == 2
    assert all(choice.finish_reason in ("length", "stop") for choice in reply.choices)


def test_closing_a_request_for_several_answers_frees_all_rows(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    stream = plugin.start(model, raw(PROMPT, n=3, max_tokens=50, ignore_eos=True))
    with plugin.backend.stream():
        for _ in range(9):
            next(stream)
        stream.close()
    assert len(model.batch) == 0
    with pytest.raises(InvalidParameterError):
        raw(PROMPT, n=0)
