"""Whatever a body holds, the answer is one of the dialect's: no 500, no hang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlxengine_serve import ServerOptions
from mlxengine_serve._fields import Table
from mlxengine_serve.app import DIALECTS, dialect
from serve_harness import Served, serving

PIXEL = (
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # the smallest picture
)
NAMES = {"llm": "mock/llm", "embed": "mock/embed", "diffusion": "mock/diffusion"}
WORDS = (
    "auto none user assistant tool text function data:, custom any base64 image tool_use tool_result message"
)
FIELDS = """type role content text name function image_url url source data input id tool_calls
arguments tool_call_id tool_use_id json_schema schema input_schema parameters call_id output effort format
budget_tokens"""
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(WORDS.split()),
)
KEYS = st.sampled_from(FIELDS.split())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi", "model": NAMES["embed"]},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/images/generations": {"prompt": "x", "model": NAMES["diffusion"], "size": "8x8"},
    "/v1/images/edits": {"prompt": "x", "image": PIXEL, "model": NAMES["diffusion"], "size": "8x8"},
    "/v1/rerank": {"query": "x", "documents": ["y"], "model": NAMES["embed"]},
}


@pytest.fixture(scope="module")
def mock() -> Iterator[Served]:
    options = ServerOptions(
        models=list(NAMES.values()), max_pixels=64 * 64, max_steps=4, first_byte_seconds=0.2
    )
    with serving(options, backend="mock") as made:
        made.wait_until(lambda: made.get("/ready").status_code == 200)
        yield made


@pytest.mark.parametrize("table", [dialect(path).table for path in DIALECTS], ids=lambda table: table.path)
def test_fields_of_any_value_end_in_the_dialects_form(mock: Served, table: Table) -> None:
    names = [item.name for item in (*table.fields, *table.extra) if item.name != "model"]

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    def check(fields: dict[str, Any]) -> None:
        answer = mock.client.post(table.path, content=json.dumps({**VALID[table.path], **fields}).encode())
        if answer.status_code == 200:
            assert "internal_error" not in answer.text
            return
        assert 400 <= answer.status_code < 500, (fields, answer.text)
        error = answer.json()["error"]
        assert error["type"]
        assert error["message"]

    check()


def test_every_path_of_a_table_is_tried_here() -> None:
    assert set(VALID) == set(DIALECTS) == {dialect(path).table.path for path in DIALECTS}
