"""Structured output: what a grammar promises holds in any batch, whatever the model would like to say."""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llm_harness import TEMPLATE, Plugin, raw, text_of, tokens_of, write_tiny
from mlxengine import GenerateParams, Grammar, Message, ReasoningDelta, TextDelta, TextRequest
from mlxengine.errors import (
    FeatureUnavailableError,
    GenerationError,
    InvalidParameterError,
    MLXEngineError,
)
from mlxengine.toolkit import grammar as grammars
from test_parts import joined, say

from tests.hub.fixtures import HubModel

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
    single: list[int] = []
    consume = grammars.GrammarRow.__call__

    def spy(self: Any, tokens: Any, logits: Any) -> Any:
        found = consume(self, tokens, logits)
        single.append(tokens.size)
        return found

    monkeypatch.setattr(grammars.GrammarRow, "__call__", spy)
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


def failing(whole: Any, at: Sequence[int]) -> Any:
    """A network that raises at some of its calls."""
    calls: list[int] = []

    class Failing:
        layers = whole.layers

        def __call__(self, *args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) in at:
                raise RuntimeError("planted")
            return whole(*args, **more)

    return Failing()


def test_a_row_with_a_grammar_goes_on_after_a_step_that_raised(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = wild(Grammar.json(SCHEMA), 3)
    (wanted,) = plugin.run([plugin.start(model, request)])
    with plugin.backend.stream():
        model.batch._discard()
    model.network = failing(model.network, (9, 14))
    (events,) = plugin.run([plugin.start(model, request)])
    assert tokens_of(events) == tokens_of(wanted)


TANGLED = " | ".join(f'"{number} {number * number}"' for number in range(3000))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.json({"type": "string", "minLength": 5, "maxLength": 2}),
        Grammar.json(False),
        Grammar.regex("(unclosed"),
        Grammar.lark("start: missing"),
        Grammar.json({"type": "object", "properties": {"a": {"$ref": "https://example.invalid/other.json"}}}),
        Grammar.choices(f"{number:030}" for number in range(10_000)),
    ],
    ids=[
        "impossible",
        "nothing-allowed",
        "bad-regex",
        "bad-lark",
        "remote-reference",
        "too-long",
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused(plugin: Plugin, tiny: Path, grammar: Grammar) -> None:
    model = plugin.load(tiny)
    (events,) = plugin.run([plugin.start(model, raw("x", grammar=grammar))])
    assert isinstance(events[-1], InvalidParameterError)
    assert "The grammar" in str(events[-1])
    assert len(model.batch) == 0


def test_a_grammar_that_becomes_too_complex_ends_its_request_only(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    late = Grammar.lark(f'start: "xyz" rest\nrest: {TANGLED}')
    fine = Grammar.regex("[a-z]{30}")
    for mixed in ([fine, late, fine], [late, fine], [late]):
        requests = [raw("x", max_tokens=10, grammar=grammar) for grammar in mixed]
        found = plugin.run([plugin.start(model, request) for request in requests])
        for grammar, events in zip(mixed, found, strict=True):
            if grammar is late:
                assert isinstance(events[-1], GenerationError)
                assert "max is 2000" in str(events[-1])
            else:
                assert len(tokens_of(events)) == 10


def optional(count: int) -> Grammar:
    """Optional properties, each with a pattern."""
    patterns = {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{{i % 7 + 1}}}x{i}$"} for i in range(count)}
    return Grammar.json({"type": "object", "properties": patterns})


@pytest.mark.parametrize(
    ("grammar", "error"),
    [
        pytest.param(optional(2000), GenerationError, id="two-thousand"),
        pytest.param(optional(4000), GenerationError, id="four-thousand", marks=pytest.mark.slow),
        pytest.param(
            Grammar.json({"patternProperties": {f"^x{i}[a-z]+$": {"type": "integer"} for i in range(4000)}}),
            InvalidParameterError,
            id="kinds-of-names",
        ),
        pytest.param(Grammar.regex("(a{1000}){1000}"), GenerationError, id="long-repetition"),
    ],
)
def test_a_huge_grammar_holds_up_no_other_answer(
    plugin: Plugin, tiny: Path, grammar: Grammar, error: type[MLXEngineError]
) -> None:
    model = plugin.load(tiny)
    plugin.text(model, "x", max_tokens=3, grammar=Grammar.choices("a"))  # prepares the tokenizer
    beside = plugin.start(model, raw("run", max_tokens=4000, ignore_eos=True))
    huge, tokens, steps = None, 0, []
    end: MLXEngineError | None = None
    with plugin.backend.stream():
        while end is None or tokens < 5:
            at = time.perf_counter(), time.thread_time()
            event = next(beside)
            tokens += isinstance(event, TextDelta)
            try:
                huge = huge or plugin.start(model, raw("x", max_tokens=20, grammar=grammar))
                next(huge, None)
            except MLXEngineError as problem:
                end = problem
            steps.append((time.perf_counter() - at[0], time.thread_time() - at[1]))
        huge.close()
        beside.close()
    assert isinstance(end, error)
    assert "Simplify" in str(end.hint)
    assert max(spent for _, spent in steps) < 0.25
    assert max(wall for wall, _ in steps) < 1.0, "the machine may be busy, but Python's lock is not held"


def test_a_grammar_that_takes_too_long_to_compile_ends_its_request(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "_PATIENCE", 0.05)
    go_on = threading.Event()
    monkeypatch.setattr(grammars, "_compiled", lambda *_: go_on.wait(60) and "")
    model = plugin.load(tiny)
    asked = [raw("x", max_tokens=5), raw("x", grammar=Grammar.regex("[a-z]{3}"))]
    fine, late = plugin.run([plugin.start(model, request) for request in asked])
    go_on.set()
    assert text_of(fine)
    assert isinstance(late[-1], InvalidParameterError)
    assert "not compiled" in str(late[-1])


def test_thousands_of_choices_are_one_pattern(plugin: Plugin, tiny: Path) -> None:
    choices = [f"{number} (a+b)*[c] \\d #{number}" for number in range(4000)]
    text = plugin.text(plugin.load(tiny), "x", max_tokens=60, grammar=Grammar.choices(choices))
    assert text in choices


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
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    for wrong in (5, "{", ["a"], {"a": object()}, deep):
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


def of_each_schema(plugin: Plugin, folder: Path, each: int) -> None:
    """Ask for ``each`` answers in the form of each schema at temperature 1, all in one batch."""
    model = plugin.load(folder)
    requests = [
        raw("In JSON: ", max_tokens=300, temperature=1.0, seed=seed, grammar=Grammar.json(schema))
        for seed in range(each)
        for schema, _ in EIGHT
    ]
    found = plugin.run([plugin.start(model, request) for request in requests])
    checks = [fits for _ in range(each) for _, fits in EIGHT]
    wrong = []
    for events, fits in zip(found, checks, strict=True):
        text = text_of(events)
        if events[-1].reason != "stop" or not fits(json.loads(text)):
            wrong.append((events[-1].reason, text))
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_of_two_hundred_answers_fit_their_schema(plugin: Plugin, smollm2: HubModel) -> None:
    of_each_schema(plugin, smollm2.folder, each=25)


def test_eight_of_eight_answers_of_a_real_model_fit_their_schema(plugin: Plugin, smollm2: HubModel) -> None:
    of_each_schema(plugin, smollm2.folder, each=1)


REASONS = (
    TEMPLATE.replace("assistant\n", "assistant\n<think>")
    + "{% if add_generation_prompt and enable_thinking is false %}</think>{% endif %}"
)


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its template opens the reasoning, and closes it at once where none is wanted."""
    folder = tmp_path_factory.mktemp("reasoner") / "model"
    return write_tiny(folder, extra=["<think>", "</think>"], template=REASONS)


@pytest.mark.feature("llm.reasoning")
def test_the_grammar_begins_where_reasoning_ends(plugin: Plugin, reasoner: Path) -> None:
    model = plugin.load(reasoner)
    events = say(plugin, model, 'hm {"a": 1}</think>yes', tools=(), grammar=Grammar.choices(["yes", "no"]))
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ('hm {"a": 1}', "yes")
    assert events[-1].reason == "stop"


@pytest.mark.feature("llm.reasoning")
def test_a_grammar_binds_at_once_where_the_template_leaves_reasoning_out(
    plugin: Plugin, reasoner: Path
) -> None:
    found = Grammar.choices(["yes", "no"])
    events = say(plugin, plugin.load(reasoner), "no", tools=(), grammar=found, thinking=False)
    assert (joined(events, ReasoningDelta), joined(events, TextDelta)) == ("", "no")


@pytest.mark.feature("llm.reasoning")
def test_reasoning_with_a_budget_ends_and_the_grammar_begins(plugin: Plugin, reasoner: Path) -> None:
    model = plugin.load(reasoner)
    asked = [
        TextRequest(
            messages=(Message.user("x"),),
            params=GenerateParams(
                max_tokens=300, temperature=1.0, seed=seed, thinking_budget=seed, grammar=Grammar.json(SCHEMA)
            ),
        )
        for seed in range(4)
    ]
    alone = [plugin.run([plugin.start(model, request)])[0] for request in asked]
    for events in alone:
        assert set(json.loads(joined(events, TextDelta))) <= {"name", "age", "tags"}
        assert events[-1].reason == "stop"
    prompt = "<|im_start|>assistant\n<think>"
    by_hand = plugin.text(
        model, prompt, max_tokens=300, thinking_budget=3, grammar=Grammar.choices(["yes", "no"])
    )
    assert by_hand.rpartition("</think>")[2] in ("yes", "no")
    together = plugin.run([plugin.start(model, request) for request in asked])
    assert [joined(events, TextDelta) for events in together] == [
        joined(events, TextDelta) for events in alone
    ]


@pytest.mark.feature("llm.reasoning")
def test_reasoning_before_a_grammar_goes_on_after_a_step_that_raised(plugin: Plugin, reasoner: Path) -> None:
    model = plugin.load(reasoner)
    params = GenerateParams(
        max_tokens=300, temperature=1.0, seed=1, thinking_budget=6, grammar=Grammar.json(SCHEMA)
    )
    request = TextRequest(messages=(Message.user("x"),), params=params)
    (wanted,) = plugin.run([plugin.start(model, request)])
    with plugin.backend.stream():
        model.batch._discard()
    model.network = failing(model.network, (4, 14))
    (events,) = plugin.run([plugin.start(model, request)])
    assert joined(events, TextDelta) == joined(wanted, TextDelta)
