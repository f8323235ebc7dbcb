"""The prompt cache: less work, the same answers, and nothing that was damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from llm_harness import Plugin, raw, tokens_of, write_tiny

from tests.hub.fixtures import fill_disk

pytestmark = pytest.mark.feature("llm.prompt_cache")

LONG = "the same instructions for everybody, " * 8


def ask(plugin: Plugin, model: Any, prompt: str, **flags: Any) -> tuple[list[int], int]:
    """The answer's tokens, and how many of the prompt's were not computed again."""
    stream = plugin.start(model, raw(prompt, max_tokens=12, ignore_eos=True), **flags)
    (events,) = plugin.run([stream])
    return tokens_of(events), events[-1].usage.cached_tokens


def test_a_shared_prefix_is_computed_once_and_answers_stay_the_same(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    for tail in ("one", "two", "three and more"):
        cold, none = ask(plugin, model, LONG + tail, prompt_cache=False)
        warm, cached = ask(plugin, model, LONG + tail)
        assert warm == cold
        assert none == 0
    assert cached >= len(LONG)


def test_an_exact_repetition_computes_the_last_token_only(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    cold, _ = ask(plugin, model, LONG)
    warm, cached = ask(plugin, model, LONG)
    assert warm == cold
    assert cached == len(LONG) - 1


def test_a_conversation_goes_on_from_the_answer(plugin: Plugin, tiny: Path) -> None:
    from mlxengine import GenerateParams, TextRequest

    model = plugin.load(tiny)
    first = TextRequest(prompt_tokens=range(20, 60), params=GenerateParams(max_tokens=10, ignore_eos=True))
    (events,) = plugin.run([plugin.start(model, first)])
    longer = (*range(20, 60), *tokens_of(events), 9, 10, 11)
    (after,) = plugin.run(
        [plugin.start(model, TextRequest(prompt_tokens=longer, params=GenerateParams(max_tokens=3)))]
    )
    assert after[-1].usage.cached_tokens == 50


def test_rows_with_and_without_a_prefix_share_a_batch(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    prompts = [LONG + "a", "short", LONG + "bcd", LONG[:100] + "?", LONG]
    cold = [ask(plugin, model, prompt, prompt_cache=False)[0] for prompt in prompts]
    ask(plugin, model, LONG)
    requests = [raw(prompt, max_tokens=12, ignore_eos=True) for prompt in prompts]
    found = plugin.run([plugin.start(model, request) for request in requests])
    assert [tokens_of(events) for events in found] == cold
    cached = [events[-1].usage.cached_tokens for events in found]
    assert cached == [len(LONG), 0, len(LONG), 100, len(LONG) - 1]


def test_a_cancelled_request_leaves_what_it_had_read(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    stream = plugin.start(model, raw(LONG, max_tokens=50, ignore_eos=True), budget_ms=0.001)
    with plugin.backend.stream():
        for _ in range(4):
            next(stream)
        stream.close()
    _, cached = ask(plugin, model, LONG)
    assert 16 <= cached < len(LONG)


@pytest.mark.feature("llm.prompt_cache_mb")
def test_the_budget_is_kept_and_the_least_recently_used_goes(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    ask(plugin, model, LONG)
    one = model.prefixes.nbytes
    model.prefixes.budget = int(2.5 * one)
    for letter in "abc":
        ask(plugin, model, letter + LONG)
        ask(plugin, model, "a" + LONG)
    assert model.prefixes.nbytes <= model.prefixes.budget
    assert ask(plugin, model, "a" + LONG)[1] == len(LONG)
    assert ask(plugin, model, "b" + LONG)[1] == 0


def test_the_flag_bounds_the_budget(plugin: Plugin, tiny: Path) -> None:
    assert plugin.load(tiny, flags={"prompt_cache_mb": 3}).prefixes.budget == 3 << 20
    nothing = plugin.load(tiny, flags={"prompt_cache_mb": 0})
    assert ask(plugin, nothing, LONG)[1] == ask(plugin, nothing, LONG)[1] == 0


def test_without_the_feature_nothing_is_kept(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, flags={"prompt_cache": False})
    assert ask(plugin, model, LONG)[1] == ask(plugin, model, LONG)[1] == 0
    assert model.prefixes is None


def test_a_sliding_window_that_has_moved_serves_only_what_holds_all_of_it(
    plugin: Plugin, tmp_path: Path
) -> None:
    folder = write_tiny(
        tmp_path / "window", layer_types=["sliding_attention", "full_attention"], sliding_window=24
    )
    model = plugin.load(folder)
    cold, _ = ask(plugin, model, LONG + "tail", prompt_cache=False)
    assert ask(plugin, model, LONG)[1] == 0
    warm, cached = ask(plugin, model, LONG + "tail")
    assert (warm, cached) == (cold, 0), "its window has moved past the shared part"
    (entry,) = [entry for entry in model.prefixes._entries if len(entry.tokens) == len(LONG) + 12]
    from mlxengine import GenerateParams, TextRequest

    longer = TextRequest(
        prompt_tokens=[*entry.tokens.tolist(), 7, 8], params=GenerateParams(max_tokens=6, ignore_eos=True)
    )
    (events,) = plugin.run([plugin.start(model, longer)])
    assert events[-1].usage.cached_tokens == len(entry.tokens)
    (again,) = plugin.run([plugin.start(model, longer, prompt_cache=False)])
    assert tokens_of(events) == tokens_of(again)


@pytest.mark.parametrize("kind", ["window", "recurrent"])
@pytest.mark.parametrize("budget_ms", [0.001, 100.0], ids=["in-pieces", "whole"])
def test_where_prompts_part_a_checkpoint_serves_the_next_one_that_cannot_be_cut(
    plugin: Plugin, tmp_path: Path, kind: str, budget_ms: float
) -> None:
    changes: dict[str, Any] = {
        "window": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24},
        "recurrent": {
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "state_size": 8,
            "conv_kernel": 4,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_rank": 4,
        },
    }
    model = plugin.load(write_tiny(tmp_path / kind, **changes[kind]))

    def said(tail: str, **flags: Any) -> tuple[list[int], int]:
        request = raw(LONG + tail * 60, max_tokens=12, ignore_eos=True)
        (events,) = plugin.run([plugin.start(model, request, budget_ms=budget_ms, **flags)])
        return tokens_of(events), events[-1].usage.cached_tokens

    answers = []
    for tail, cached in (("one", 0), ("two", 0), ("xyz", len(LONG)), ("four", len(LONG))):
        answers.append(said(tail, prompt_cache=False)[0])
        assert said(tail) == (answers[-1], cached), tail
    assert len(set(map(tuple, answers))) == 4, "the tails matter"


@pytest.mark.feature("llm.prompt_cache_folder")
def test_a_disk_that_is_full_costs_the_kept_prefix_and_no_answer(
    plugin: Plugin, tiny: Path, small_disk: Path
) -> None:
    flags = {"prompt_cache_folder": str(small_disk / "shelf")}
    cold, _ = ask(plugin, plugin.load(tiny), LONG)

    def kept() -> list[str]:
        return sorted(path.suffix for path in (small_disk / "shelf").rglob("*") if path.is_file())

    ballast = fill_disk(small_disk, leave=32 << 10)
    assert ask(plugin, plugin.load(tiny, flags=flags), LONG) == (cold, 0)
    assert kept() == [], "nothing is half-written, and nothing of the attempt is left"
    ballast.unlink()
    assert ask(plugin, plugin.load(tiny, flags=flags), LONG) == (cold, 0)
    assert kept() == [".json", ".safetensors"]
    assert ask(plugin, plugin.load(tiny, flags=flags), LONG) == (cold, len(LONG) - 1)


@pytest.mark.feature("llm.prompt_cache_folder")
def test_what_a_killed_process_had_half_written_is_removed_and_what_is_being_written_is_not(
    plugin: Plugin, tiny: Path, tmp_path: Path
) -> None:
    flags = {"prompt_cache_folder": str(tmp_path / "shelf")}
    ask(plugin, plugin.load(tiny, flags=flags), LONG)
    (file,) = (tmp_path / "shelf").rglob("*.safetensors")
    left, busy = file.parent / "writing-left", file.parent / "writing-busy"
    for folder in (left, busy):
        folder.mkdir()
        (folder / "half.safetensors").write_bytes(b"x")
    os.utime(left, (0, 0))
    assert ask(plugin, plugin.load(tiny, flags=flags), LONG)[1] == len(LONG) - 1
    assert (left.exists(), busy.exists()) == (False, True)
