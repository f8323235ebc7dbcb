"""The page on OpenAI's request fields is current, complete, and what it says of each field is so."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import mlxengine
import pytest
from mlxengine.errors import MLXEngineError
from mlxengine.text.params import params_from
from mlxengine.text.tools import describe

ROOT = Path(__file__).parents[2]
# openai-python's CompletionCreateParams, November 2026
FIELDS = set(
    """messages model audio frequency_penalty function_call functions logit_bias logprobs
max_completion_tokens max_tokens metadata modalities n parallel_tool_calls prediction presence_penalty
prompt_cache_key prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier
stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity
web_search_options""".split()  # noqa: SIM905
)


def table() -> Any:
    spec = importlib.util.spec_from_file_location("openai_fields", ROOT / "scripts/openai_fields.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["openai_fields"] = module
    spec.loader.exec_module(module)
    return module


TABLE = table()
ALL = [*TABLE.REQUEST, *TABLE.MESSAGES]
NAMES = {name: getattr(mlxengine, name) for name in mlxengine.__all__ if name[0].isupper()} | {
    "params_from": params_from,
    "describe": describe,
    "base64": base64,
    "json": json,
}


def test_every_field_of_the_request_has_its_row() -> None:
    assert {field.name.split(" ")[0] for field in TABLE.REQUEST} == FIELDS


def test_the_page_is_current() -> None:
    assert TABLE.TARGET.read_text() == TABLE.page(), "run scripts/openai_fields.py"


@pytest.mark.parametrize("field", [item for item in ALL if item.kind == "honoured"], ids=lambda f: f.name)
def test_an_honoured_field_does_what_it_asks(field: Any) -> None:
    found = eval(field.ours, NAMES | {"value": field.example})
    assert eval(field.shows, NAMES | {"value": field.example, "found": found}) is True


@pytest.mark.parametrize("field", [item for item in ALL if item.kind == "refused"], ids=lambda f: f.name)
def test_a_refused_field_raises(field: Any) -> None:
    with pytest.raises(MLXEngineError):
        eval(field.ours, NAMES | {"value": field.example})


def test_a_field_that_is_only_noted_is_no_parameter_of_ours() -> None:
    for field in TABLE.REQUEST:
        if field.kind == "yours":
            assert field.note
            with pytest.raises(MLXEngineError):
                params_from({field.name: True})
