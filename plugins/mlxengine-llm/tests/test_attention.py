"""Decoding under a mask by products and a softmax gives what the library's attention gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, raw, tokens_of
from mlx_lm.models import base, llama
from mlxengine.toolkit import attention
from mlxengine.toolkit.attention import DecodeAttention, written_out

ROWS, HEADS, GROUPS, WIDTH, LENGTH = 3, 8, 2, 16, 40


def arrays(queries: int = 1) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(1), 3)
    shapes = [(ROWS, HEADS, queries, WIDTH), *[(ROWS, GROUPS, LENGTH, WIDTH)] * 2]
    made = [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]
    mask = (mx.arange(LENGTH)[None] >= mx.array([0, 5, 30])[:, None])[:, None, None]
    return made[0], made[1], made[2], mask


def test_one_query_a_row_under_a_mask_is_the_librarys_attention() -> None:
    queries, keys, values, mask = arrays()
    found = written_out(base.scaled_dot_product_attention)(queries, keys, values, None, 0.25, mask)
    weights = mx.softmax(
        mx.where(mask, 0.25 * queries @ mx.repeat(keys, HEADS // GROUPS, axis=1).swapaxes(-1, -2), -mx.inf),
        axis=-1,
    )
    wanted = weights @ mx.repeat(values, HEADS // GROUPS, axis=1)
    assert mx.allclose(found, wanted, atol=1e-5)
    assert found.shape == queries.shape


@pytest.mark.parametrize("what", ["no mask", "a word", "several queries", "sinks", "added"])
def test_everything_else_is_left_to_the_library(what: str) -> None:
    queries, keys, values, mask = arrays(2 if what == "several queries" else 1)
    given: list[Any] = []

    def plain(*args: Any, **more: Any) -> mx.array:
        given.append((args, more))
        return queries

    masks = {"no mask": None, "a word": "causal", "added": mx.zeros((ROWS, 1, 1, LENGTH))}
    sinks = mx.zeros(HEADS) if what == "sinks" else None
    written_out(plain)(queries, keys, values, None, 0.25, masks.get(what, mask), sinks)
    assert len(given) == 1
    assert ("sinks" in given[0][1]) == (what == "sinks")


def test_a_batch_decodes_so_on_cuda_and_the_library_is_left_as_it_was(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [raw("some words " * (1 + i), max_tokens=12, ignore_eos=True) for i in range(4)]

    def answers() -> list[list[int]]:
        model = plugin.load(tiny, flags={"prompt_cache": False})
        return [tokens_of(events) for events in plugin.run([plugin.start(model, one) for one in asked])]

    wanted, seen = answers(), []
    real = attention.written_out

    def watched(plain: Any) -> Any:
        quick = real(plain)

        def attend(*args: Any, **more: Any) -> mx.array:
            seen.append(args[0].shape[0])
            return quick(*args, **more)

        return attend

    monkeypatch.setattr(attention, "written_out", watched)
    monkeypatch.setattr(DecodeAttention.__init__, "__kwdefaults__", {"on": ("cpu", "cuda")})
    assert answers() == wanted
    assert max(seen) == len(asked)
    assert llama.scaled_dot_product_attention is base.scaled_dot_product_attention
