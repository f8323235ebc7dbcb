"""Packed caches, and what is served one request at a time: speculation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from llm_harness import Plugin, passes, raw, tokens_of, write_tiny
from mlxengine import Grammar
from mlxengine.errors import (
    FeatureUnavailableError,
    IncompatibleWeightsError,
    InvalidParameterError,
    ModelNotFoundError,
)
from mlxengine.toolkit.packed import multiplies
from mlxengine_llm._speculation import Lookup, Payoff
from sameness import check_same

PROMPTS = ["abc abc abc abc abc", "once upon a time there was", "x"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 numbers, so that caches can be packed."""
    return write_tiny(tmp_path_factory.mktemp("heads") / "model", hidden_size=128)


def answers(plugin: Plugin, model: Any, **params: Any) -> list[list[int]]:
    params = {"max_tokens": 40, "ignore_eos": True, **params}
    streams = [plugin.start(model, raw(prompt, **params)) for prompt in PROMPTS]
    return [tokens_of(events) for events in plugin.run(streams)]


@pytest.mark.feature("llm.speculation")
def test_speculation_gives_the_tokens_of_plain_greedy_decoding(plugin: Plugin, tiny: Path) -> None:
    plain, guessing = plugin.load(tiny), plugin.load(tiny, flags={"speculation": True})
    wanted = answers(plugin, plain)
    assert answers(plugin, guessing) == wanted
    assert answers(plugin, guessing) == wanted, "also from the prompt cache, which guesses must not damage"
    (events,) = plugin.run([plugin.start(guessing, raw(PROMPTS[0], max_tokens=60, ignore_eos=True))])
    extra = dict(events[-1].metrics.extra)
    assert extra["speculation_guessed"] > 0


def test_a_text_that_repeats_itself_takes_fewer_forward_passes(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Payoff, "count", lambda self: 4)
    model = plugin.load(tiny, flags={"speculation": True, "prompt_cache": False})
    passes: list[int] = []
    whole = model.network

    class Counting:
        layers = whole.layers
        args = whole.args

        def __call__(self, tokens: mx.array, **more: Any) -> Any:
            passes.append(tokens.size)
            return whole(tokens, **more)

    request = raw("12 12 12", max_tokens=120, ignore_eos=True)
    (wanted,) = plugin.run([plugin.start(plugin.load(tiny), request)])
    model.network = Counting()
    (events,) = plugin.run([plugin.start(model, request)])
    assert tokens_of(events) == tokens_of(wanted)
    assert len(passes) < 100, "a random model repeats itself soon"


def test_an_answer_that_ends_among_right_guesses_leaves_a_true_prompt_cache(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Payoff, "count", lambda self: 8)
    prompt = "what is said " * 3
    plain, model = plugin.load(tiny), plugin.load(tiny, flags={"draft_model": str(tiny)})
    wanted = plugin.text(plain, prompt, max_tokens=30, ignore_eos=True)
    for tokens in (12, 30):
        assert wanted.startswith(plugin.text(model, prompt, max_tokens=tokens, ignore_eos=True))


def test_guesses_are_what_followed_before() -> None:
    text = list(range(50)) * 2
    assert Lookup().guess(text[:70], 3) == [20, 21, 22]
    assert Lookup().guess(list(range(70)), 3) == []
    near, far = [1, 2, 3, 7, 7], [9, 2, 3, 8, 8]
    assert Lookup().guess([*near, *far, 1, 2, 3], 2) == [7, 7], "more of what came before is the same"
    assert Lookup().guess([*near, *far, 2, 3], 2) == [8, 8], "the last one of equals"


def test_guessing_grows_where_it_pays_and_stops_where_it_does_not() -> None:
    payoff = Payoff()
    counts = []
    for _ in range(6):
        counts.append(payoff.count())
        payoff.took(counts[-1], counts[-1], 0.001 + 0.0001 * counts[-1])
    assert counts == [0, 1, 2, 4, 8, 8]
    for _ in range(3):  # all are right, but checking them takes longer than drawing them
        payoff.took(payoff.count() or 1, 1, 0.1)
    assert payoff.count() == 0
    tried = 0
    for _ in range(200):
        count = payoff.count()
        tried += count
        payoff.took(count, 0, 0.001)
    assert 0 < tried < 10
    assert 0 < dict(payoff.measured)["speculation_accepted"] < 1


@pytest.mark.feature("llm.draft_model")
def test_a_draft_model_changes_no_token_and_its_acceptance_is_told(
    plugin: Plugin, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Payoff, "count", lambda self: 3)
    wanted = answers(plugin, plugin.load(tiny))
    drafts = {"itself": tiny, "a stranger": write_tiny(tmp_path / "stranger", seed=9, hidden_size=16)}
    shares = {}
    for name, folder in drafts.items():
        model = plugin.load(tiny, flags={"draft_model": str(folder)})
        for _ in range(2):  # the second time the prompts come from the cache, and only the draft reads them
            assert answers(plugin, model) == wanted
        request = raw(PROMPTS[0] * 40, max_tokens=30, ignore_eos=True)
        (events,) = plugin.run([plugin.start(model, request)])
        extra = dict(events[-1].metrics.extra)
        assert extra["speculation_guessed"] > 0
        shares[name] = extra["speculation_accepted"]
    assert shares["itself"] > 0.9 > shares["a stranger"]


def test_a_draft_model_that_cannot_guess_is_refused(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", extra=["<more>"])
    with pytest.raises(IncompatibleWeightsError, match="another vocabulary"):
        plugin.load(tiny, flags={"draft_model": str(other)})
    with pytest.raises(ModelNotFoundError):
        plugin.load(tiny, flags={"draft_model": str(tmp_path / "nowhere")})
    with pytest.raises(FeatureUnavailableError, match="together"):
        plugin.load(tiny, flags={"draft_model": str(tiny), "speculation": True})
    with pytest.raises(FeatureUnavailableError, match="Load the model"):
        plugin.start(plugin.load(tiny), raw("x"), draft_model=str(tiny))


def test_sampling_grammars_and_logprobs_work_one_at_a_time(plugin: Plugin, tiny: Path) -> None:
    plain, serial = plugin.load(tiny), plugin.load(tiny, flags={"speculation": True})
    for params in ({"temperature": 1.0, "seed": 4}, {"repetition_penalty": 1.4}):
        assert answers(plugin, serial, **params) == answers(plugin, plain, **params)
    grammar = Grammar.regex(r"[a-f]{5}-\d{3}")
    text = plugin.text(serial, "x", max_tokens=30, temperature=1.0, seed=1, grammar=grammar)
    assert text == plugin.text(plain, "x", max_tokens=30, temperature=1.0, seed=1, grammar=grammar)
    request = raw("x", max_tokens=4, logprobs=True, top_logprobs=2, ignore_eos=True)
    (events,) = plugin.run([plugin.start(serial, request)])
    assert sum(len(event.logprobs) for event in events[:-1]) == 4


@pytest.mark.feature("llm.kv_bits")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_cache_is_smaller_and_answers_alike(plugin: Plugin, wide: Path, bits: int) -> None:
    plain, packed = plugin.load(wide), plugin.load(wide, flags={"kv_bits": bits})
    prompt = "something to remember " * 12
    for model in (plain, packed):
        plugin.text(model, prompt, max_tokens=8, ignore_eos=True)
    (whole,), (small,) = plain.prefixes._entries, packed.prefixes._entries
    assert [type(layer).__name__ for layer in small.layers] == ["PackedKVCache"] * 2
    assert small.nbytes < 0.8 * whole.nbytes
    first = [plugin.text(model, prompt, max_tokens=1, ignore_eos=True) for model in (plain, packed)]
    assert first[0] == first[1] or bits == 4
    again = plugin.text(packed, prompt, max_tokens=8, ignore_eos=True)
    assert again == plugin.text(packed, prompt, max_tokens=8, ignore_eos=True)


@pytest.mark.feature("llm.kv_bits")
@pytest.mark.parametrize("bits", [8, 4])
def test_packed_caches_in_one_batch_answer_as_they_do_alone(plugin: Plugin, wide: Path, bits: int) -> None:
    model = plugin.load(wide, flags={"kv_bits": bits, "prompt_cache": False})
    asked = [
        raw(f"{prompt} {i}" * (1 + 12 * (i == 4)), max_tokens=10 + 9 * i, ignore_eos=True, top_logprobs=2)
        for i, prompt in enumerate((*PROMPTS, *PROMPTS))
    ]
    alone = [plugin.run([plugin.start(model, request)])[0] for request in asked]
    seen = passes(model, plugin)
    starts = [lambda request=request: plugin.start(model, request) for request in asked]
    together = plugin.run([start() for start in starts[:4]], later={5: starts[4:5], 9: starts[5:]})
    assert max(rows for rows, _ in seen) >= 4, "in one batch"
    for one, other in zip(together, alone, strict=True):
        check_same(one, other, within=1e-2)  # a sum that differs in its last bit may be packed otherwise


@pytest.mark.feature("llm.kv_bits")
def test_packed_caches_are_unpacked_for_attention_where_no_product_takes_them(
    plugin: Plugin, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [raw(prompt * 4, max_tokens=20, ignore_eos=True, top_logprobs=2) for prompt in PROMPTS]
    flags = {"kv_bits": 4, "prompt_cache": False}
    with_products = plugin.load(wide, flags=flags)
    wanted = plugin.run([plugin.start(with_products, request) for request in asked])
    tried: list[int] = []

    def missing(*_inputs: Any, **_settings: Any) -> mx.array:
        tried.append(1)
        raise RuntimeError("[quantized_matmul] No implementation for problem shape")

    multiplies.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(mx, "quantized_matmul", missing)
        model = plugin.load(wide, flags=flags)
        found = plugin.run([plugin.start(model, request) for request in asked])
    multiplies.cache_clear()
    assert len(tried) == 1, "it is tried once in a process"
    assert [type(layer).__name__ for layer in model._caches()] == ["PackedKVCache"] * 2
    for one, other in zip(found, wanted, strict=True):
        check_same(one, other, within=1e-2)


@pytest.mark.parametrize("kept", [{}, {"kv_bits": 4}])
def test_a_prompt_cache_serves_rows_of_a_batch(plugin: Plugin, wide: Path, kept: dict[str, Any]) -> None:
    model = plugin.load(wide, flags=kept)
    asked = [
        raw("the same beginning " * 3 + end, max_tokens=8, ignore_eos=True, top_logprobs=2) for end in "abc"
    ]
    alone = [plugin.run([plugin.start(model, request, prompt_cache=False)])[0] for request in asked]
    for _ in range(2):
        found = plugin.run([plugin.start(model, request) for request in asked])
        for one, other in zip(found, alone, strict=True):
            check_same(one, other, within=1e-2)
    assert found[0][-1].usage.cached_tokens > 40


def test_what_the_library_would_ignore_is_refused(plugin: Plugin, tiny: Path, tmp_path: Path) -> None:
    sliding = write_tiny(
        tmp_path / "sliding", layer_types=["sliding_attention", "full_attention"], sliding_window=24
    )
    for flags in ({"kv_bits": 8}, {"kv_tokens": 64}):
        with pytest.raises(FeatureUnavailableError):
            plugin.load(sliding, flags=flags)
    with pytest.raises(FeatureUnavailableError, match="8 numbers"):
        plugin.load(tiny, flags={"kv_bits": 8})
    with pytest.raises(InvalidParameterError):
        plugin.load(tiny, flags={"kv_tokens": 3})
    with pytest.raises(InvalidParameterError):
        plugin.load(tiny, flags={"kv_bits": 5})
    with pytest.raises(FeatureUnavailableError, match="Load the model"):
        plugin.start(plugin.load(tiny), raw("x"), speculation=True)
