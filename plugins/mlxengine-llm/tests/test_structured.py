"""Structured output: what a grammar promises holds in any batch, whatever the model would like to say."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, text_of, tokens_of
from mlxengine import GenerateParams, Grammar
from mlxengine.errors import FeatureUnavailableError, GenerationError, InvalidParameterError

pytestmark = pytest.mark.feature("llm.structured_output")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
RECURSIVE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"enum": [0, 1]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def wild(grammar: Grammar | None, seed: int, **more: Any) -> Any:
    return raw("x", max_tokens=300, temperature=1.0, seed=seed, grammar=grammar, **more)


def test_json_of_a_schema_is_valid_for_every_seed(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    for seed in range(5):
        (events,) = plugin.run([plugin.start(model, wild(Grammar.json(SCHEMA), seed))])
        found = json.loads(text_of(events))
        assert set(found) <= {"name", "age", "tags"}
        assert isinstance(found["name"], str)
        assert 0 <= found["age"] <= 150
        assert events[-1].reason == "stop"


def test_a_recursive_schema_is_followed(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    found = json.loads(
        plugin.text(model, "x", max_tokens=400, temperature=1.0, seed=2, grammar=Grammar.json(RECURSIVE))
    )
    while found is not None:
        assert found["v"] in (0, 1)
        found = found["next"]


def test_a_regex_a_lark_grammar_and_choices_hold(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    pattern = r"[A-Z]{2}-\d{4}"
    assert re.fullmatch(pattern, plugin.text(model, "x", max_tokens=50, grammar=Grammar.regex(pattern)))
    lark = 'start: "(" start ")" | "x"'
    text = plugin.text(model, "x", max_tokens=200, temperature=1.0, seed=1, grammar=Grammar.lark(lark))
    assert re.fullmatch(r"\(*x\)*", text)
    assert text.count("(") == text.count(")")
    choices = ["yes", 'no "never"', "mäßig"]
    assert plugin.text(model, "x", max_tokens=50, grammar=Grammar.choices(choices)) in choices


def test_rows_with_and_without_a_grammar_equal_their_solo_runs(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    grammars = [
        Grammar.json(SCHEMA),
        None,
        Grammar.regex(r"\d{3,9}"),
        Grammar.choices(["left", "right"]),
        None,
    ]
    requests = [
        raw("x", max_tokens=60, temperature=1.0, seed=i, grammar=grammar)
        for i, grammar in enumerate(grammars)
    ]
    alone = [tokens_of(plugin.run([plugin.start(model, request)])[0]) for request in requests]
    later = {
        4 * i: [lambda request=request: plugin.start(model, request)] for i, request in enumerate(requests)
    }
    assert [tokens_of(events) for events in plugin.run([], later=later)] == alone


def test_masks_are_filled_once_a_step_for_all_rows(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxengine.toolkit import grammar

    single: list[int] = []
    consume = grammar.GrammarRow.__call__

    def spy(self: Any, tokens: Any, logits: Any) -> Any:
        found = consume(self, tokens, logits)
        single.append(tokens.size)
        return found

    monkeypatch.setattr(grammar.GrammarRow, "__call__", spy)
    model = plugin.load(tiny)
    fills: list[int] = []
    fill = model.grammars.fill

    def counted(logits: Any) -> None:
        fills.append(0 if model.grammars._expected is None else len(model.grammars._expected[0]))
        fill(logits)

    monkeypatch.setattr(model.grammars, "fill", counted)
    request = raw("x", max_tokens=12, grammar=Grammar.regex("[a-z]{30}"))
    plugin.run([plugin.start(model, request) for _ in range(4)])
    assert fills.count(4) >= 10
    assert set(fills) == {0, 4}


def test_a_row_with_a_grammar_goes_on_after_a_step_that_raised(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = wild(Grammar.json(SCHEMA), 3)
    (wanted,) = plugin.run([plugin.start(model, request)])
    with plugin.backend.stream():
        model.batch._discard()
    whole, calls = model.network, []

    class Failing:
        layers = whole.layers

        def __call__(self, *args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) in (9, 14):
                raise RuntimeError("planted")
            return whole(*args, **more)

    model.network = Failing()
    (events,) = plugin.run([plugin.start(model, request)])
    assert tokens_of(events) == tokens_of(wanted)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json({"type": "string", "minLength": 5, "maxLength": 2}),
        Grammar.json(False),
        Grammar.regex("(unclosed"),
        Grammar.lark("start: missing"),
        Grammar.json({"type": "object", "properties": {"a": {"$ref": "https://example.invalid/other.json"}}}),
    ],
    ids=["impossible", "nothing-allowed", "bad-regex", "bad-lark", "remote-reference"],
)
def test_a_grammar_that_cannot_be_used_is_refused(plugin: Plugin, tiny: Path, grammar: Grammar) -> None:
    model = plugin.load(tiny)
    with pytest.raises(InvalidParameterError, match="grammar"):
        plugin.start(model, raw("x", grammar=grammar))
    assert len(model.batch) == 0


def test_a_huge_grammar_ends_its_request_only(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    huge = Grammar.regex("(a{1,800}b{1,800}){1,900}")
    plain = plugin.start(model, raw("hello", max_tokens=10, ignore_eos=True))
    try:
        streams = [plain, plugin.start(model, raw("x", max_tokens=10, grammar=huge))]
    except InvalidParameterError:
        streams = [plain]
    found = plugin.run(streams)
    assert len(tokens_of(found[0])) == 10
    assert all(isinstance(events[-1], GenerationError) or text_of(events) for events in found[1:])


def test_structured_output_that_is_turned_off_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    with pytest.raises(FeatureUnavailableError):
        plugin.start(model, raw("x", grammar=Grammar.choices("a")), structured_output=False)
    with pytest.raises(InvalidParameterError, match="ignore_eos"):
        plugin.start(model, raw("x", grammar=Grammar.choices("a"), ignore_eos=True))


def test_a_grammar_takes_a_pydantic_model_and_refuses_what_is_no_schema() -> None:
    class Person:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return {"type": "object"}

    assert Grammar.json(Person) == Grammar.json('{"type": "object"}') == Grammar.json()
    for wrong in (5, "{", ["a"], {"a": object()}):
        with pytest.raises(InvalidParameterError):
            Grammar.json(wrong)
    with pytest.raises(InvalidParameterError):
        GenerateParams(grammar="json")  # type: ignore[arg-type]
    with pytest.raises(InvalidParameterError):
        Grammar.choices([])


STRING, WHOLE = {"type": "string", "maxLength": 12}, {"type": "integer", "minimum": -99, "maximum": 99}


def closed(**properties: Any) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def is_string(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 12


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -99 <= value <= 99


EIGHT: list[tuple[Any, Any]] = [
    (closed(name=STRING, age=WHOLE), lambda v: set(v) == {"name", "age"} and is_whole(v["age"])),
    (
        {"type": "array", "items": WHOLE, "maxItems": 5},
        lambda v: isinstance(v, list) and len(v) <= 5 and all(map(is_whole, v)),
    ),
    ({"enum": ["red", "green", 3, None]}, lambda v: v in ("red", "green", 3, None)),
    (closed(a={"anyOf": [STRING, WHOLE]}), lambda v: is_string(v["a"]) or is_whole(v["a"])),
    (
        {"type": "array", "prefixItems": [STRING, WHOLE], "items": False, "minItems": 2},
        lambda v: len(v) == 2 and is_string(v[0]) and is_whole(v[1]),
    ),
    (
        {"type": "string", "pattern": r"^[a-z]{2,6}@[a-z]{2,6}\.org$"},
        lambda v: re.fullmatch(r"[a-z]{2,6}@[a-z]{2,6}\.org", v) is not None,
    ),
    (
        closed(when={"type": "string", "format": "date"}),
        lambda v: datetime.date.fromisoformat(v["when"]) is not None,
    ),
    (
        closed(x={"type": "boolean"}, y={"const": "fixed"}),
        lambda v: isinstance(v["x"], bool) and v["y"] == "fixed",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "fits"), EIGHT, ids=range(8))
def test_twenty_five_of_twenty_five_answers_fit_their_schema(
    plugin: Plugin, tiny: Path, schema: dict[str, Any], fits: Any
) -> None:
    """Eight schemas, two hundred answers at temperature 1, of a model that only ever babbles."""
    model = plugin.load(tiny)
    requests = [wild(Grammar.json(schema), seed) for seed in range(25)]
    for events in plugin.run([plugin.start(model, request) for request in requests]):
        assert events[-1].reason == "stop"
        assert fits(json.loads(text_of(events)))
