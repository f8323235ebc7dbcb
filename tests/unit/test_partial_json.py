"""What is certain of a JSON answer at each of its characters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlxengine import Finished, FinishReason, PartialJSON, ReasoningDelta, TextDelta
from mlxengine.errors import InvalidParameterError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


def grows(small: Any, large: Any) -> bool:
    """Whether a value can become another one by more text."""
    if isinstance(small, dict) and isinstance(large, dict):
        return list(small) == list(large)[: len(small)] and all(grows(small[k], large[k]) for k in small)
    if isinstance(small, list) and isinstance(large, list):
        return len(small) <= len(large) and all(map(grows, small, large))
    if isinstance(small, str) and isinstance(large, str):
        return large.startswith(small)
    return small is None or small == large


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(value=VALUES, plain=st.booleans(), indent=st.none() | st.just(1))
def test_the_value_grows_with_every_character_into_the_whole(value: Any, plain: bool, indent: Any) -> None:
    partial, last = PartialJSON(), None
    for char in json.dumps(value, ensure_ascii=not plain, indent=indent):
        found = partial.feed(char)
        assert grows(last, found)
        assert grows(found, value)
        last = found
    assert partial.feed(Finished(reason=FinishReason.STOP)) == value
    assert partial.complete


def test_strings_grow_numbers_wait_and_keys_come_with_their_values() -> None:
    partial = PartialJSON()
    steps = [
        (" ", None),
        ('{"na', {}),
        ('me": ', {}),
        ('"A', {"name": "A"}),
        ("da\\", {"name": "Ada"}),
        ('n",', {"name": "Ada\n"}),
        (' "age": 3', {"name": "Ada\n"}),
        ("6", {"name": "Ada\n"}),
        ("}", {"name": "Ada\n", "age": 36}),
    ]
    for piece, wanted in steps:
        assert not partial.complete
        assert partial.feed(piece) == wanted
    assert partial.complete


def test_half_a_character_is_never_shown() -> None:
    partial = PartialJSON()
    assert [partial.feed(piece) for piece in ('"a\\ud83d', "\\ude", '00"')] == ["a", "a", "a\U0001f600"]


def test_events_of_another_answer_and_reasoning_change_nothing() -> None:
    partial = PartialJSON(index=1)
    assert partial.feed(TextDelta(text="[1,")) is None
    assert partial.feed(ReasoningDelta(text="{", index=1)) is None
    assert partial.feed(TextDelta(text="[2,", index=1)) == [2]


def test_a_number_that_was_cut_off_is_not_taken_for_whole() -> None:
    partial = PartialJSON()
    assert partial.feed(TextDelta(text="12")) is None
    assert partial.feed(Finished(reason=FinishReason.LENGTH)) is None
    assert not partial.complete


@pytest.mark.parametrize("text", ["Sure! {", '{"a" 1,', "[1 2,", "]", '{"a": 1]', "nope,"])
def test_what_is_no_json_is_said(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="not JSON"):
        PartialJSON().feed(text)
