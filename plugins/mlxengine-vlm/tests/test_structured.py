"""Structured output: what a schema promises holds, whatever the picture and however wild the sampling."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from mlxengine import Grammar
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError
from vlm_harness import Plugin, asking, text_of
from vlm_pictures import COLOURS, SHAPES, Thing, draw

pytestmark = pytest.mark.feature("vlm.structured_output")

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": list(COLOURS)},
        "shape": {"enum": list(SHAPES)},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["shape", "count"],
    "additionalProperties": False,
}
DESCRIBE = "Describe the picture as JSON."


def wild(seed: int, **more: Any) -> Any:
    picture = draw([Thing(SHAPES[seed % 3], list(COLOURS)[seed % 8], seed % 9)])
    options = {"grammar": Grammar.json(SCHEMA), "temperature": 1.5, "max_tokens": 120, "seed": seed, **more}
    return asking(DESCRIBE, picture, **options)


def test_50_of_50_answers_fit_the_schema(plugin: Plugin, tiny: Any) -> None:
    valid = 0
    for start in range(0, 50, 10):
        started = [plugin.start(tiny, wild(seed)) for seed in range(start, start + 10)]
        for events in plugin.run(started):
            found = json.loads(text_of(events))
            valid += found["shape"] in SHAPES and found["count"] in range(10)
            assert found.get("colour", "red") in COLOURS
            assert set(found) <= {"colour", "shape", "count"}
            assert events[-1].reason == "stop"
    assert valid == 50


def test_the_schema_does_not_take_the_sight_away(plugin: Plugin, tiny: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": list(COLOURS)}, "shape": {"enum": list(SHAPES)}},
        "required": ["colour", "shape"],
        "additionalProperties": False,
    }
    for shape, colour in (("circle", "red"), ("square", "blue"), ("triangle", "green")):
        picture = draw([Thing(shape, colour)])
        answer = plugin.answer(tiny, asking(DESCRIBE, picture, grammar=Grammar.json(schema), max_tokens=60))
        assert json.loads(answer) == {"colour": colour, "shape": shape}


def test_rows_with_and_without_a_grammar_equal_their_solo_runs(plugin: Plugin, tiny: Any) -> None:
    requests = [
        wild(1),
        wild(2, grammar=None, ignore_eos=True, max_tokens=20),
        wild(3, grammar=Grammar.regex(r"[a-z]{3,9}")),
        wild(4, grammar=Grammar.choices(["left", "right"])),
    ]
    alone = [plugin.answer(tiny, request) for request in requests]
    later = {
        3 * i: [lambda request=request: plugin.start(tiny, request)] for i, request in enumerate(requests)
    }
    assert [text_of(events) for events in plugin.run([], later=later)] == alone
    assert re.fullmatch(r"[a-z]{3,9}", alone[2])
    assert alone[3] in ("left", "right")


def test_an_impossible_grammar_and_a_flag_that_is_off_are_refused(plugin: Plugin, tiny: Any) -> None:
    (events,) = plugin.run([plugin.start(tiny, wild(0, grammar=Grammar.lark("start: nowhere")))])
    assert isinstance(events[-1], InvalidParameterError)
    with pytest.raises(FeatureUnavailableError):
        plugin.start(tiny, wild(0), structured_output=False)
    with pytest.raises(InvalidParameterError, match="logit_bias"):
        plugin.start(tiny, asking("?", logit_bias=((100_000, 1.0),)))
