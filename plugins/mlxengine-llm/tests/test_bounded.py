"""Bounded caches: the first tokens and the last ones, the same alone, in pieces and in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, passes, raw, tokens_of, write_tiny
from mlx_lm.models.cache import RotatingKVCache
from mlxengine_llm._speculation import Payoff
from sameness import check_same, on_gpu

BOUND = 48
PROMPTS = ["short", "one that is longer than the bound " * 4, "x", "a prompt that grows over it", "b " * 90]


def of_mlx_lm(model: Any, prompt: str, count: int) -> list[int]:
    """A greedy answer by mlx-lm's own bounded cache, the prompt read token by token."""
    caches = [RotatingKVCache(max_size=BOUND, keep=4) for _ in model.network.layers]
    tokens = model.tokenizer.encode(prompt)
    found: list[int] = []
    while len(found) < count:
        for token in tokens:
            logits = model.network(mx.array([[token]]), cache=caches)
        chosen: Any = mx.argmax(logits[0, -1]).item()
        tokens = [int(chosen)]
        found += tokens
    return found


def asked(prompt: str, count: int) -> Any:
    return raw(prompt, max_tokens=count, ignore_eos=True, top_logprobs=2)


@pytest.mark.feature("llm.kv_tokens")
@pytest.mark.parametrize("chunk", [None, 7])
def test_bounded_caches_in_one_batch_answer_as_mlx_lm_does_alone(
    plugin: Plugin, tiny: Path, chunk: int | None
) -> None:
    model = plugin.load(tiny, flags={"kv_tokens": BOUND, "prompt_cache": False})
    counts = [70, 20, 9, 60, 33]  # they leave at different times, some before and some after the bound
    with plugin.backend.stream():
        wanted = [of_mlx_lm(model, *pair) for pair in zip(PROMPTS, counts, strict=True)]
    seen = passes(model, plugin)
    if chunk is not None:
        model.batch.pace.tokens = lambda budget_ms, *, running=False: chunk
    starts = [
        lambda pair=pair: plugin.start(model, asked(*pair)) for pair in zip(PROMPTS, counts, strict=True)
    ]
    (alone,) = plugin.run([starts[1]()])
    together = plugin.run([start() for start in starts[:3]], later={6: starts[3:4], 30: starts[4:]})
    if not on_gpu():
        assert [tokens_of(events) for events in together] == wanted
        assert tokens_of(alone) == wanted[1]
    assert max(rows for rows, _ in seen) >= 3, "in one batch"
    check_same(together[1], alone)


@pytest.mark.parametrize("bound", ["kv_tokens", "sliding"])
def test_guesses_end_before_they_would_push_tokens_out(
    plugin: Plugin, tiny: Path, tmp_path: Path, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Payoff, "count", lambda self: 8)
    if bound == "sliding":
        tiny = write_tiny(
            tmp_path / "model", layer_types=["sliding_attention", "full_attention"], sliding_window=BOUND
        )
    flags: dict[str, object] = {"prompt_cache": False} | ({"kv_tokens": BOUND} if bound != "sliding" else {})
    models = [plugin.load(tiny, flags={**flags, **more}) for more in ({}, {"draft_model": str(tiny)})]
    for prompt in ("a b c", "no", "12 12 12"):
        plain, guessed = [plugin.run([plugin.start(model, asked(prompt, 90))])[0] for model in models]
        assert tokens_of(guessed) == tokens_of(plain)
    assert dict(guessed[-1].metrics.extra)["speculation_guessed"] > 0


def test_prompts_that_begin_alike_share_bounded_caches(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    flags = {"kv_tokens": 160, "prompt_cache_folder": str(tmp_path)}
    model = plugin.load(tiny, flags=flags)
    same = "the same beginning " * 7
    requests = [asked(same + end, 8) for end in ("a", "b", "c" * 60)]
    alone = [plugin.run([plugin.start(model, request, prompt_cache=False)])[0] for request in requests]
    plugin.run([plugin.start(model, requests[0])])
    for again in (model, plugin.load(tiny, flags=flags)):  # from memory, and from disk
        found = plugin.run([plugin.start(again, request) for request in requests])
        assert [tokens_of(events) for events in found] == [tokens_of(events) for events in alone]
        assert found[1][-1].usage.cached_tokens > 100
    other = plugin.load(tiny, flags={**flags, "kv_tokens": 200})
    (events,) = plugin.run([plugin.start(other, requests[0])])
    assert events[-1].usage.cached_tokens == 0, "a cache of another kind is not used"


def test_a_bounded_cache_takes_no_more_than_its_bound(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"kv_tokens": BOUND})
    streams = [plugin.start(model, asked(prompt, 200)) for prompt in PROMPTS[:3]]
    sizes = []
    with plugin.backend.stream():
        while not all(stream._answer.done for stream in streams):
            for stream in streams:
                next(stream)
            batch = model.batch._decoder._batch if model.batch._decoder else ()
            if len(batch) == 3:
                sizes.append(max(part.shape[2] for layer in batch.layers for part in layer.parts))
        for stream in streams:
            stream.close()
    assert max(sizes) == BOUND
