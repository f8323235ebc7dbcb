"""Attention by products and a softmax gives what the library's gives, and is taken where it is quicker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, raw, tokens_of
from mlx_lm.models import base, llama
from mlxengine.toolkit import _attention_kernel, attention
from mlxengine.toolkit.attention import Plans, QuickAttention, quick, written_out

ROWS, HEADS, GROUPS, WIDTH, LENGTH = 3, 8, 2, 16, 40


def arrays(queries: int = 1) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(1), 3)
    shapes = [(ROWS, HEADS, queries, WIDTH), *[(ROWS, GROUPS, LENGTH, WIDTH)] * 2]
    made = [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]
    mask = (mx.arange(LENGTH)[None] >= mx.array([0, 5, 30])[:, None])[:, None, None]
    return made[0], made[1], made[2], mask


def reference(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
    """The definition, in fp32: masks can be broadcast to (rows, heads, queries, positions)."""
    times = HEADS // GROUPS
    scores = 0.25 * queries @ mx.repeat(keys, times, axis=1).swapaxes(-1, -2)
    return mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1) @ mx.repeat(values, times, axis=1)


def test_one_query_a_row_under_a_mask_is_the_librarys_attention() -> None:
    queries, keys, values, mask = arrays()
    attend = quick(base.scaled_dot_product_attention, Plans(0, float))
    found = attend(queries, keys, values, None, 0.25, mask)
    assert mx.allclose(found, reference(queries, keys, values, mask), atol=1e-5)
    assert found.shape == queries.shape


def test_the_kernel_serves_where_it_can_and_is_the_definition_there() -> None:
    """On a machine without CUDA there is none."""
    shapes = [(ROWS, 8, 2, 64, 77), (2, 32, 8, 128, 600), (40, 6, 2, 96, 130)]
    made = _attention_kernel.kernel()
    assert (made is not None) == mx.cuda.is_available()
    for rows, heads, groups, width, length in shapes:
        keys = mx.random.split(mx.random.key(length), 3)
        queries = mx.random.normal((rows, heads, 1, width), key=keys[0])
        whole = [mx.random.normal((rows, groups, length + 50, width), key=key) for key in keys[1:]]
        mask = (mx.arange(length)[None] >= (mx.arange(rows) * 3)[:, None])[:, None, None]
        for dtype, near in ((mx.float32, 1e-5), (mx.bfloat16, 2e-2)):
            given = [part.astype(dtype) for part in (queries, *(part[:, :, :length] for part in whole))]
            assert _attention_kernel.serves(*given, mask)
            if made is not None:
                found = _attention_kernel.attend(made, *given, width**-0.5, mask)
                wanted = definition(*(part.astype(mx.float32) for part in given), width**-0.5, mask)
                assert mx.allclose(found.astype(mx.float32), wanted, atol=near, rtol=near)


def definition(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Attention of one query a row by sums over an axis, which no matrix product rounds."""
    times = queries.shape[1] // keys.shape[1]
    keys, values = mx.repeat(keys, times, axis=1), mx.repeat(values, times, axis=1)
    scores = mx.where(mask[:, :, 0], (queries * keys).sum(-1) * scale, -mx.inf)
    return (mx.softmax(scores, axis=-1)[..., None] * values).sum(-2, keepdims=True)


@pytest.mark.parametrize(
    "what", ["a mask for all", "several queries", "wide values", "an odd width", "mixed", "few rows, long"]
)
def test_what_is_not_the_kernels_is_left_to_other_ways(what: str) -> None:
    rows, length, width = (1, 4 * 64 + 1, 512) if what == "few rows, long" else (ROWS, LENGTH, 64)
    width = 48 if what == "an odd width" else width
    queries = mx.zeros((rows, 4, 2 if what == "several queries" else 1, width))
    keys = mx.zeros((rows, 4, length, width))
    values = mx.zeros((rows, 4, length, 32)) if what == "wide values" else keys
    mask = mx.zeros((length,) if what == "a mask for all" else (rows, 1, 1, length), dtype=mx.bool_)
    if what == "mixed":
        values = values.astype(mx.float16)
    assert not _attention_kernel.serves(queries, keys, values, mask)


@pytest.mark.parametrize("masked", [True, False])
def test_the_last_positions_of_a_prompt_are_the_librarys_attention(masked: bool) -> None:
    queries, keys, values, padding = arrays(7)
    causal = mx.arange(LENGTH) <= mx.arange(LENGTH - 7, LENGTH)[:, None]
    wanted = mx.logical_and(causal, padding) if masked else causal
    given = wanted if masked else "causal"
    found = written_out(queries, keys, values, 0.25, given)
    assert mx.allclose(found, reference(queries, keys, values, wanted), atol=1e-5)
    theirs = base.scaled_dot_product_attention(queries, keys, values, cache=None, scale=0.25, mask=given)
    assert mx.allclose(found, theirs, atol=1e-5)


def test_a_mask_of_two_dimensions_holds_for_all_rows() -> None:
    queries, keys, values, _ = arrays(5)
    window = mx.arange(LENGTH) >= mx.arange(LENGTH - 12, LENGTH - 7)[:, None]
    found = written_out(queries, keys, values, 0.25, window)
    assert mx.allclose(found, reference(queries, keys, values, window), atol=1e-5)


def test_a_size_is_planned_once_writing_it_out_has_cost_as_much() -> None:
    plans = Plans(1.0, lambda scores: scores / 1000)
    assert [plans.planned("small", 400) for _ in range(5)] == [False, False, True, True, True]
    assert plans.planned("large", 1001), "one that costs more at once is planned at once"
    assert not plans.planned("another", 400)
    assert Plans(1e9, float).planned("beyond memory", attention.MOST_SCORES + 1)
    plans.ahead = True
    assert plans.planned("yet another", 1), "where there is time"


def test_pieces_of_prompts_are_written_out_until_their_size_is_planned() -> None:
    queries, keys, values, _ = (part.astype(mx.bfloat16) for part in arrays(7))
    given: list[Any] = []

    def plain(*args: Any, **more: Any) -> mx.array:
        given.append((args, more))
        return queries

    attend = quick(plain, Plans(2.5 * ROWS * HEADS * 7 * LENGTH, float))
    for _ in range(4):
        attend(queries, keys, values, None, 0.25, "causal")
    assert len(given) == 2
    attend(queries.astype(mx.float32), keys, values, None, 0.25, "causal")
    assert len(given) == 3, "what is in full precision is never planned"
    attend(queries, keys[:, :, :7], values[:, :, :7], None, 0.25, "causal")
    assert len(given) == 4, "whole prompts have few sizes"


@pytest.mark.parametrize("what", ["no mask", "a word", "several queries", "sinks", "added", "packed"])
def test_everything_else_is_left_to_the_library(what: str) -> None:
    queries, keys, values, mask = arrays(2 if what == "several queries" else 1)
    given: list[Any] = []

    def plain(*args: Any, **more: Any) -> mx.array:
        given.append((args, more))
        return queries

    masks = {"no mask": None, "a word": "causal", "added": mx.zeros((ROWS, 1, 1, LENGTH))}
    sinks = mx.zeros(HEADS) if what == "sinks" else None
    if what == "packed":
        keys = values = (keys, keys, keys)
    quick(plain, Plans(0, float))(queries, keys, values, None, 0.25, masks.get(what, mask), sinks)
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

    def watched(*args: Any) -> mx.array:
        seen.append(args[0].shape[0])
        return real(*args)

    monkeypatch.setattr(attention, "written_out", watched)
    monkeypatch.setattr(QuickAttention.__init__, "__kwdefaults__", {"on": ("cpu", "cuda")})
    assert answers() == wanted
    assert max(seen) == len(asked)
    assert llama.scaled_dot_product_attention is base.scaled_dot_product_attention
