"""Sixteen requests at once, no two alike: every one gets what it would have got alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_harness import TEMPLATE, Plugin, passes, scores_of, write_adapter, write_tiny
from mlxengine import (
    ChoiceFinished,
    Finished,
    GenerateParams,
    Grammar,
    LoadAdapterRequest,
    Message,
    TextDelta,
    TextRequest,
    ToolCall,
)
from sameness import check_same

# What a template that mlx-lm recognises names: the markers, and how a call is written.
TOOLS = "{% if tools %}<tool_call>{{ tools }}{# tool_call.name #}{% endif %}" + TEMPLATE
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def mix() -> list[TextRequest]:
    """The requests, by what is special about them."""

    def ask(about: str, *, prompt: str = "", tools: tuple[Any, ...] = (), **params: Any) -> TextRequest:
        choice = "required" if tools else "auto"
        usual = {"max_tokens": 10, "top_logprobs": 2, "ignore_eos": "grammar" not in params}
        chosen = GenerateParams(**{**usual, **params})
        messages = (Message.user(prompt or f"Say something about {about}."),)
        return TextRequest(messages=messages, tools=tools, tool_choice=choice, params=chosen)

    warm = {"temperature": 1.0}
    return [
        ask("nothing"),
        ask("heat", temperature=0.7, seed=1),
        ask("nuclei", **warm, top_p=0.8, seed=2),
        ask("the best", temperature=1.3, top_k=5, seed=3),
        ask("the likely", **warm, min_p=0.05, seed=4),
        ask("people", grammar=Grammar.json(PERSON), max_tokens=60),
        ask("others", **warm, seed=5, grammar=Grammar.json(PERSON), max_tokens=60),
        ask("colours", **warm, seed=6, grammar=Grammar.choices(["red", "green", "blue"])),
        ask("an end", stop=("e", "t", "q"), max_tokens=40),
        ask("scores", top_logprobs=3),
        ask("bias", logit_bias={50: 4.0}, repetition_penalty=1.3),
        ask("presence", **warm, presence_penalty=1.0, frequency_penalty=0.5, seed=7),
        ask("a", adapter="a"),
        ask("b", adapter="b", **warm, seed=8, grammar=Grammar.json(PERSON), max_tokens=60),
        ask("tools", tools=(WEATHER,), **warm, seed=9, max_tokens=120, ignore_eos=False),
        ask("two", prompt="a long prompt " * 20, n=2, **warm, seed=10),
    ]


def told(events: list[Any]) -> Any:
    """What the events say, apart from times and from how the text was cut."""
    for event in events:
        if isinstance(event, Exception):
            raise event
    texts: dict[int, tuple[str, tuple[int, ...]]] = {}
    for event in events:
        if isinstance(event, TextDelta):
            text, ids = texts.get(event.index, ("", ()))
            texts[event.index] = (text + event.text, ids + event.token_ids)
    calls = [(event.name, dict(event.arguments)) for event in events if isinstance(event, ToolCall)]
    ends = sorted((e.index, e.reason, e.stop) for e in events if isinstance(e, ChoiceFinished))
    end = next(event for event in events if isinstance(event, Finished))
    return texts, calls, ends, end.reason, end.stop, end.usage.prompt_tokens, end.usage.completion_tokens


def of_choice(events: list[Any], index: int) -> list[Any]:
    """The text of one of several answers."""
    return [event for event in events if isinstance(event, TextDelta) and event.index == index]


@pytest.mark.parametrize("apart", [0, 1], ids=["at-once", "one-after-another"])
def test_sixteen_different_requests_equal_their_solo_runs(plugin: Plugin, tmp_path: Path, apart: int) -> None:
    folder = write_tiny(tmp_path / "model", template=TOOLS)
    model = plugin.load(folder, flags={"prompt_cache": False})
    for name, seed in (("a", 3), ("b", 4)):
        write_adapter(tmp_path / name, folder, seed=seed)
        plugin.run([plugin.start(model, LoadAdapterRequest(name=name, source=str(tmp_path / name)))])
    alone = [plugin.run([plugin.start(model, request)])[0] for request in mix()]
    seen = passes(model, plugin)
    starts = [lambda request=request: plugin.start(model, request) for request in mix()]
    if apart:
        together = plugin.run([], later={2 * at: [start] for at, start in enumerate(starts)})
    else:
        together = plugin.run([start() for start in starts])
    for request, one, other in zip(mix(), together, alone, strict=True):
        sampled = bool(request.params.temperature)
        same = [
            check_same(of_choice(one, index), of_choice(other, index), sampled=sampled) for index in (0, 1)
        ]
        if all(same):
            assert told(one) == told(other)
    assert any(isinstance(event, ToolCall) for event in together[14])
    assert len({event.index for event in together[15] if isinstance(event, TextDelta)}) == 2
    assert len(scores_of(together[9])) == 40
    if not apart:
        assert max(rows for rows, _ in seen) >= 10, "one batch; short answers may be over"
