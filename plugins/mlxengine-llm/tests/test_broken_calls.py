"""An answer with two tool calls, in each format that mlx-lm parses, that breaks off after any token."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import mlx_lm.tool_parsers
import pytest
from llm_harness import Plugin, write_tiny, write_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlxengine import TextDelta, ToolCall
from mlxengine_llm._parts import Router
from test_parts import TOOLS, say

ARGUMENTS = {"city": "Wien", "days": 3}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
DESCRIBED = {"type": "function", "function": {"name": "weather", "description": "", "parameters": SCHEMA}}

_JSON = '{"city": "Wien", "days": 3}'
_GLM = "weather<{0}arg_key>city</{0}arg_key><{0}arg_value>Wien</{0}arg_value>"
_GLM += "<{0}arg_key>days</{0}arg_key><{0}arg_value>3</{0}arg_value>"
_K2 = f"<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{_JSON}<|tool_call_end|>"
_K3 = (
    '<|open|>call tool="weather" index="1"<|sep|>'
    '<|open|>argument key="city" type="string"<|sep|>Wien<|close|>argument<|sep|>'
    '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
)
_MINIMAX = (
    '<invoke name="weather"><parameter name="city">Wien</parameter>'
    '<parameter name="days">3</parameter></invoke>'
)
_MUSE = (
    '<atem:invoke name="weather"><atem:parameter name="city">Wien</atem:parameter>'
    '<atem:parameter name="days">3</atem:parameter></atem:invoke>'
)
_CODER = "\n<function=weather>\n<parameter=city>\nWien\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
_MINICPM = '"weather"><param name="city">Wien</param><param name="days">3</param>'
_PYTHON = 'weather(city="Wien", days=3)'
_ARGS = f"weather[ARGS]{_JSON}"

# Of each format the calls inside of a piece, and how many such pieces there are.
FORMATS: dict[str, tuple[list[str], int]] = {
    "function_gemma": (["call:weather{city:<escape>Wien<escape>,days:3}"], 2),
    "gemma4": (['call:weather{city:<|"|>Wien<|"|>,days:3}'], 2),
    "glm47": ([_GLM.format("")], 2),
    "json_tools": ([f'\n{{"name": "weather", "arguments": {_JSON}}}'], 2),
    "kimi_k2": ([_K2, _K2], 1),
    "kimi_k3": ([_K3, _K3], 1),
    "laguna": ([_GLM.format("")], 2),
    "longcat": ([_GLM.format("longcat_")], 2),
    "minicpm5": ([_MINICPM], 2),
    "minimax_m2": ([_MINIMAX, _MINIMAX], 1),
    "mistral": ([_ARGS, _ARGS], 1),
    "muse_spark": ([_MUSE, _MUSE], 1),
    "pythonic": ([f"[{_PYTHON}]"], 2),
    "qwen3_coder": ([f"{_CODER}</function>\n"], 2),
}
# In these a call is whole before the end marker of its piece.
_SELF_CLOSED = {"json_tools", "pythonic", "mistral", "kimi_k2", "kimi_k3", "minimax_m2", "muse_spark"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def wrapped(plain: Any, form: str) -> Any:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{form}")
    return TokenizerWrapper(
        plain,
        tool_parser=module.parse_tool_call,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
    )


def heard(tokenizer: Any, text: str) -> tuple[list[ToolCall], str]:
    """The calls and the text of an answer that comes in two pieces."""
    router = Router(tokenizer, [1], [DESCRIBED])
    half = len(text) // 2
    events = [*router.feed(text[:half]), *router.feed(text[half:]), *router.finish()]
    spoken = "".join(event.text for event in events if isinstance(event, TextDelta))
    return [event for event in events if isinstance(event, ToolCall)], spoken


def _alike(one: str, other: str) -> int:
    """How many letters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def test_every_format_that_mlx_lm_parses_is_here() -> None:
    assert set(FORMATS) == {item.name for item in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)}


@pytest.mark.parametrize("form", FORMATS)
def test_only_whole_calls_have_arguments_wherever_the_answer_breaks_off(plain: Any, form: str) -> None:
    tokenizer = wrapped(plain, form)
    calls, pieces = FORMATS[form]
    opened, closed = tokenizer.tool_call_start, tokenizer.tool_call_end
    text, begins, ends = "Hm.", [], []
    for _ in range(pieces):
        begins.append(len(text) + len(opened))
        text += opened
        for at, inside in enumerate(calls):
            if at:  # until it can no longer be the end marker
                begins.append(len(text) + _alike(inside, closed) + 1)
            text += inside
            ends.append(len(text.rstrip()) if form in _SELF_CLOSED else len(text) + len(closed))
        text += closed
    for cut in range(len(text) + 1):
        found, spoken = heard(tokenizer, text[:cut])
        whole, begun = sum(end <= cut for end in ends), sum(begin <= cut for begin in begins)
        if form in _SELF_CLOSED and closed and not text[:cut].endswith(closed) and whole == begun:
            # within the end marker that follows a whole call
            assert {item.name for item in found} <= {"weather", ""}
            whole = sum(item.arguments is not None for item in found)
            assert whole >= sum(begin <= cut for begin in begins) - 1
        assert [item.arguments for item in found[:whole]] == [ARGUMENTS] * whole, text[:cut]
        assert [item.arguments for item in found[whole:]] == [None] * (len(found) - whole), text[:cut]
        assert len(found) == begun, text[:cut]
        assert all(bool(item.error) == (item.arguments is None) for item in found)
        assert spoken.startswith("Hm."[:cut])
    assert whole == 2


@pytest.mark.parametrize("form", ["kimi_k3", "minimax_m2", "muse_spark"])
def test_what_looks_like_the_end_within_an_argument_ends_no_call_that_breaks_off(
    plain: Any, form: str
) -> None:
    tokenizer = wrapped(plain, form)
    (inside, _), _ = FORMATS[form]
    before, _, after = inside.partition("Wien")
    end = after[max(after.rfind("</"), after.rfind("<|close|>")) :]
    calls, _ = heard(tokenizer, f"{tokenizer.tool_call_start}{inside}{before}Graz{end} and")
    assert [item.arguments for item in calls] == [ARGUMENTS, None]


@pytest.mark.feature("llm.tool_calling")
def test_a_call_that_max_tokens_cuts_has_no_arguments(plugin: Plugin, tmp_path: Path) -> None:
    template = TOOLS.replace("tool_call.name", "<arg_key>")
    model = plugin.load(write_tiny(tmp_path / "model", template=template))
    said = f"<tool_call>{FORMATS['glm47'][0][0]}</tool_call>"
    events = say(plugin, model, said, max_tokens=len(said) - 20)
    (found,) = [event for event in events if isinstance(event, ToolCall)]
    assert (found.arguments, found.error) == (None, "the answer ended within the call")
    assert events[-1].reason == "length"
