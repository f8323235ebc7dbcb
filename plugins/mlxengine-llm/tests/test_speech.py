"""Tool calls in every notation: read as mlx-lm reads them, told as they are written, cut anywhere."""

from __future__ import annotations

import importlib
import itertools
import json
import pkgutil
from typing import Any, ClassVar

import mlx_lm.tool_parsers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlxengine import Event, ReasoningDelta, TextDelta, ToolCall, ToolCallDelta
from mlxengine.toolkit.speech import FORMATS, HARMONY, MUSE, Dialect, Router
from speech_texts import ARGUMENTS, CALLS, DESCRIBED, SHOWN, TEXTS, TOOLS

from tests.tool_calls import check, plain

# mlx-lm's parsers of these cannot read what the planned texts have: braces in strings, or no arguments.
SIMPLER = {
    "function_gemma": "<start_function_call>call:weather{city:<escape>Wien<escape>,days:3}<end_function_call>"
    * 2,
    "longcat": TEXTS["longcat"].replace(
        "now</", "now<longcat_arg_key>x</longcat_arg_key><longcat_arg_value>y</longcat_arg_value></"
    ),
}
# mlx-lm has no parser of these.
_OTHERS = {"harmony", "cohere2_moe"}


class NoTokens:
    """A tokenizer for what is told by texts alone."""

    init_kwargs: ClassVar[dict[str, Any]] = {}

    def get_vocab(self) -> dict[str, int]:
        return {}

    def convert_tokens_to_ids(self, text: str) -> int:
        return -1


def dialect_of(name: str) -> Dialect:
    if name == "harmony":
        return Dialect(tokenizer=NoTokens(), headers=HARMONY)
    calls = next(item for item in FORMATS if item.name == name)
    return Dialect(tokenizer=NoTokens(), calls=calls, think=("<think>", "</think>"))


def heard(name: str, pieces: Any, **more: Any) -> list[Any]:
    dialect = dialect_of(name)
    router = Router(dialect, dialect.calls, TOOLS, [1], **more)
    found: list[Event] = []
    for piece in pieces:
        found += router.feed(piece)
    return found + router.finish()


def calls_of(events: list[Any]) -> list[Any]:
    found = [event for event in events if isinstance(event, ToolCall)]
    return [(item.name, None if item.arguments is None else json.loads(plain(item))) for item in found]


def joined(events: list[Any], kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def test_every_format_of_mlx_lm_is_known() -> None:
    theirs = {item.name for item in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)}
    assert theirs | {"cohere2_moe", "mistral_list"} == {item.name for item in FORMATS}
    assert set(TEXTS) == {item.name for item in FORMATS} | {"harmony"}


@pytest.mark.parametrize("name", sorted(set(TEXTS) - _OTHERS))
def test_calls_are_what_mlx_lm_reads(name: str) -> None:
    parser = importlib.import_module(f"mlx_lm.tool_parsers.{name.removesuffix('_list')}")
    opened, closed = parser.tool_call_start, parser.tool_call_end
    theirs: list[Any] = []
    text = SIMPLER.get(name, TEXTS[name])
    for piece in text.split(opened)[1:] if closed else [text.removeprefix(opened)]:
        inside = piece.partition(closed)[0] if closed else piece
        found = parser.parse_tool_call(inside, DESCRIBED)
        theirs += found if isinstance(found, list) else [found]
    ours = calls_of(heard(name, [text]))
    assert len(ours) == 2
    assert ours == [(item["name"], item["arguments"]) for item in theirs]


@pytest.mark.parametrize("name", TEXTS)
def test_calls_that_are_cut_in_two_anywhere_are_told_whole(name: str) -> None:
    text = TEXTS[name]
    for cut in range(len(text) + 1):
        events = heard(name, [text[:cut], text[cut:]])
        assert calls_of(events) == CALLS, text[:cut]
        assert joined(events, TextDelta).strip() == "", text[:cut]
        check(events)


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_calls_in_pieces_of_any_sizes_are_told_whole(name: str, data: Any) -> None:
    whole = TEXTS[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1))))
    pieces = [whole[a:b] for a, b in itertools.pairwise([0, *cuts, len(whole)])]
    events = heard(name, pieces)
    assert calls_of(events) == CALLS
    assert joined(events, TextDelta) == ""
    check(events)


@pytest.mark.parametrize("name", sorted(set(TEXTS) - {"harmony", "mistral", "mistral_list"}))
def test_what_stands_around_calls_stays_text_letter_by_letter(name: str) -> None:
    events = heard(name, f"<think>hm</think>Before. {TEXTS[name]} After <tool.")
    assert calls_of(events) == CALLS
    assert joined(events, ReasoningDelta) == "hm"
    assert joined(events, TextDelta).replace("\n", "") == "Before.  After <tool."
    check(events)


def test_blank_space_behind_a_call_is_text_where_text_follows() -> None:
    call = '<tool_call>{"name": "x", "arguments": {}}</tool_call>'
    for said, text in (
        (f"{call}\n{call}\n", ""),
        (f"{call}\n\nand\n{call}", "\n\nand\n"),
        (f"{call} \n<think>hm</think>.\n", " \n.\n"),
    ):
        for pieces in ([said], list(said)):
            assert joined(heard("json_tools", pieces), TextDelta) == text


@pytest.mark.parametrize("name", TEXTS)
def test_arguments_are_told_while_they_are_written(name: str) -> None:
    """The name is told before the arguments, and half of a long string before its end."""
    text = TEXTS[name]
    until = text.index("🎉") if "🎉" in text else text.index("\\ud83c")
    events = heard(name, text[:until])
    deltas = [item for item in events if isinstance(item, ToolCallDelta)]
    assert deltas[0].name == "weather"
    assert deltas[0].arguments == ""
    said = "".join(item.arguments for item in deltas)
    assert said.startswith('{"city": "Wien ')
    assert len(said) > 30


@pytest.mark.parametrize("name", TEXTS)
def test_a_call_that_breaks_off_anywhere_has_its_arguments_or_none(name: str) -> None:
    text = TEXTS[name]
    counts = []
    for cut in range(len(text) + 1):
        events = heard(name, [text[:cut]])
        found = calls_of(events)
        whole = [item for item in found if item[1] is not None]
        assert whole == CALLS[: len(whole)], text[:cut]
        assert len(found) - len(whole) <= 1, text[:cut]
        errors = [item.error for item in events if isinstance(item, ToolCall)]
        assert [error is None for error in errors] == [item[1] is not None for item in found]
        check(events)
        counts.append(len(found))
    assert counts == sorted(counts), "what has begun stays"
    assert counts[-1] == 2


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_a_model_writes_nothing_is_raised_and_no_letter_is_lost(data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(set(TEXTS) - {"harmony"})))
    text = TEXTS[name]
    places = st.integers(0, len(text))
    for _ in range(data.draw(st.integers(1, 4))):
        a, b = sorted((data.draw(places), data.draw(places)))
        text = (
            text[:a]
            + data.draw(st.sampled_from(["", text[a:b], "x", '"', "\\", "}", "</", "\ud800"]))
            + text[b:]
        )
    events = heard(name, [text])
    check(events)
    assert events == heard(name, list(text)) or calls_of(events) == calls_of(heard(name, list(text)))
    opens = dialect_of(name).calls.opens  # type: ignore[union-attr]
    if opens not in text:
        assert joined(events, TextDelta) == text


@pytest.mark.parametrize(
    ("name", "said", "wanted"),
    [
        ("json_tools", '<tool_call>{"arguments": {"a": 1}, "name": "x"}</tool_call>', ("x", {"a": 1})),
        ("json_tools", '<tool_call>{"name": "x", "arguments": "{\\"a\\": 1}"}</tool_call>', ("x", {"a": 1})),
        ("json_tools", '<tool_call>{"name": "x"}</tool_call>', ("x", {})),
        ("json_tools", '<tool_call>{"name": "x", "arguments": null}</tool_call>', ("x", {})),
        (
            "json_tools",
            '<tool_call>{"name": "x", "arguments": {"a": "</tool_call>"}}</tool_call>',
            ("x", {"a": "</tool_call>"}),
        ),
        ("glm47", '<tool_call>{"name": "x", "arguments": {"a": 1}}</tool_call>', ("x", {"a": 1})),
        ("mistral", '[TOOL_CALLS]x[CALL_ID]abc[ARGS]{"a": 1}', ("x", {"a": 1})),
        ("mistral", '[TOOL_CALLS]x{"a": 1}', ("x", {"a": 1})),
        (
            "pythonic",
            "<|tool_call_start|>[x(a='''b\"c''', d={'e': None})]<|tool_call_end|>",
            ("x", {"a": 'b"c', "d": {"e": None}}),
        ),
        ("pythonic", "<|tool_call_start|>[x(a=1e999)]<|tool_call_end|>", ("x", {"a": "1e999"})),
        (
            "gemma4",
            '<|tool_call>call:x{a:{b:[{c:<|"|>d<|"|>}]}}<tool_call|>',
            ("x", {"a": {"b": [{"c": "d"}]}}),
        ),
        (
            "kimi_k3",
            '<|open|>tools<|sep|><|open|>call tool="x"<|sep|><|open|>json type="object"<|sep|>'
            '{"a": 1}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
            ("x", {"a": 1}),
        ),
    ],
)
def test_other_ways_of_writing_calls_are_read_too(name: str, said: str, wanted: Any) -> None:
    for pieces in ([said], list(said)):
        events = heard(name, pieces)
        assert calls_of(events) == [wanted]
        check(events)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("json_tools", '<tool_call>{"name": "x", "arguments": 5}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "x", "arguments": {"a": "\\ud800"}}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "x", "arguments": {"a": 1e999}}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "x", "arguments": {"a": [-Infinity]}}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "x", "arguments": "{\\"a\\": NaN}"}</tool_call>'),
        ("json_tools", '<tool_call>{"name": "x", "arguments": {"a" 5}}</tool_call>'),
        ("json_tools", "<tool_call>" + '{"name": "x", "arguments": {"a": ' + "[" * 5_000 + "</tool_call>"),
        ("pythonic", "<|tool_call_start|>[x(5)]<|tool_call_end|>"),
        ("gemma4", "<|tool_call>call:x{a:1]<tool_call|>"),
        ("glm47", "<tool_call>I will call it now</tool_call>"),
        ("qwen3_coder", "<tool_call>\n<function=x>\nnothing</tool_call>"),
    ],
)
def test_what_is_no_call_is_told_as_a_broken_one_and_the_text_goes_on(name: str, said: str) -> None:
    for pieces in ([f"{said} and on"], f"{said} and on"):
        events = heard(name, pieces)
        (found,) = [item for item in events if isinstance(item, ToolCall)]
        opens = dialect_of(name).calls.opens  # type: ignore[union-attr]
        assert found.arguments is None
        assert found.error
        assert opens + found.raw + dialect_of(name).calls.closes == said  # type: ignore[union-attr]
        assert joined(events, TextDelta) == " and on"


def test_a_typed_value_is_what_its_schema_says() -> None:
    schema = {
        "$defs": {"where": {"type": "string"}},
        "properties": {
            "a": {"type": "string"},
            "b": {"$ref": "#/$defs/where"},
            "c": {"type": ["integer", "null"]},
            "d": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
            "e": {"enum": ["1", "2"]},
            "f": {"type": "integer"},
            "g": {},
            "h": {"type": "number"},
            "i": {},
        },
    }
    calls = next(item for item in FORMATS if item.name == "glm47")
    written = {"a": "5", "b": "5", "c": "None", "d": "true", "e": "1", "f": "3.0", "g": "[1, 2]"}
    written |= {"h": "1e999", "i": "NaN"}  # no number of JSON's
    said = "".join(
        f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in written.items()
    )
    router = Router(Dialect(tokenizer=NoTokens(), calls=calls), calls, {"x": schema})
    (found,) = calls_of(router.feed(f"<tool_call>x{said}</tool_call>"))
    typed = {"a": "5", "b": "5", "c": None, "d": True, "e": "1", "f": 3, "g": [1, 2]}
    assert found == ("x", {**typed, "h": "1e999", "i": "NaN"})


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_notation_is_recognised_where_mlx_lm_recognises_it(name: str) -> None:
    from mlx_lm.tokenizer_utils import _infer_tool_parser
    from speech_texts import MARKS

    class Tokenizer(NoTokens):
        chat_template = SHOWN[name]

        def get_vocab(self) -> dict[str, int]:
            return {text: at for at, text in enumerate(MARKS.get(name, []))}

        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            return [1, 2]

    found = Dialect.of(Tokenizer(), SHOWN[name])
    assert ("harmony" if found.headers is HARMONY else found.calls and found.calls.name) == name
    if name not in _OTHERS:
        assert _infer_tool_parser(Tokenizer()) == name.removesuffix("_list")
    assert (found.headers is MUSE) == (name == "muse_spark")
    assert ARGUMENTS
