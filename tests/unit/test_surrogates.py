"""Half of a surrogate pair is no text: refused by name wherever text enters, not a crash far inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlxengine import (
    EmbedRequest,
    GenerateParams,
    ImageRequest,
    Message,
    RankRequest,
    ScoreRequest,
    TextPart,
    TextRequest,
    ToolCallPart,
    ToolResultPart,
)
from mlxengine.errors import InvalidParameterError
from mlxengine.text.grammar import Grammar
from mlxengine.text.tools import call, describe

HALF = "a\ud800b"


def helper(city: str) -> str:
    return HALF + city


def failing(city: str) -> str:
    raise ValueError(HALF)


ENTRIES: dict[str, Callable[[], Any]] = {
    "a message": lambda: Message.user(HALF),
    "a text part": lambda: TextPart(HALF),
    "a call's name": lambda: ToolCallPart("1", HALF, {}),
    "a call's arguments": lambda: ToolCallPart("1", "f", {"a": [{"b": HALF}]}),
    "a call's keys": lambda: ToolCallPart("1", "f", {HALF: 1}),
    "a tool's result": lambda: ToolResultPart("1", "f", HALF),
    "a prompt": lambda: TextRequest(prompt=HALF),
    "instructions": lambda: TextRequest(prompt="a", instructions=HALF),
    "a tool": lambda: describe({"function": {"name": "f", "description": HALF}}),
    "a stop text": lambda: GenerateParams(stop=(HALF,)),
    "a pattern": lambda: Grammar.regex(HALF),
    "a Lark grammar": lambda: Grammar.lark(f'start: "{HALF}"'),
    "choices": lambda: Grammar.choices(["x", HALF]),
    "a schema": lambda: Grammar.json({"enum": [HALF]}),
    "a schema's text": lambda: Grammar.json('{"enum": ["\\ud800"]}'),
    "a text to score": lambda: ScoreRequest(text=HALF),
    "a text to embed": lambda: EmbedRequest(texts=["x", HALF]),
    "a prompt to embed with": lambda: EmbedRequest(texts=["x"], prompt=HALF),
    "a query": lambda: RankRequest(query=HALF, documents=["x"]),
    "a document": lambda: RankRequest(query="x", documents=[HALF]),
    "a picture's prompt": lambda: ImageRequest(prompt=HALF),
    "what a picture should not show": lambda: ImageRequest(prompt="x", negative=HALF),
}


@pytest.mark.parametrize("make", ENTRIES.values(), ids=ENTRIES)
def test_half_a_surrogate_pair_is_refused_with_its_place(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidParameterError, match="surrogate") as caught:
        make()
    str(caught.value).encode()


def test_whole_characters_of_two_halves_pass() -> None:
    assert TextPart("😀").text == "😀"


def test_what_a_tool_says_is_shown_to_the_model_whatever_it_holds() -> None:
    part = ToolCallPart("1", "helper", {"city": "Graz"})
    assert call([helper], part).content == "a\\ud800bGraz"
    assert call([failing], ToolCallPart("1", "failing", {"city": "Graz"})).content == "ValueError: a\\ud800b"


def test_a_value_that_nests_without_end_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidParameterError, match="nested"):
        describe({"function": {"name": "f", "parameters": deep}})
