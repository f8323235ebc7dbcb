"""What a model says over several ranks is what it says whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, evolve
from llm_harness import scores_of, write_tiny
from mlxengine import GenerateParams, Grammar, InferenceEngine, Progress, TextHandle
from mlxengine.errors import UnsupportedInputError
from mlxengine.text.requests import LoadAdapterRequest, ScoreRequest
from shard_harness import GREEDY, text_of

PROMPTS = ["once upon", "x", "a longer prompt " * 9, "why?", "tell me more " * 3, "b" * 40, "the end"]
SIX = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48, "intermediate_size": 96}
STAGES = {"model_type": "qwen2", "num_hidden_layers": 3}


@define
class Pair:
    """A model, whole and over ranks."""

    whole: TextHandle
    spread: TextHandle

    def both(self, prompt: str, params: GenerateParams) -> tuple[Any, Any]:
        return self.whole.generate(prompt, params), self.spread.generate(prompt, params)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(({}, {"shard.ranks": 2}), id="tensor-2"),
        # a ring spins: three ranks take minutes on two cores
        pytest.param((SIX, {"shard.ranks": 3}), id="tensor-3", marks=pytest.mark.slow),
        pytest.param(
            (STAGES, {"shard.ranks": 2, "shard.split": "pipeline"}), id="pipeline-2", marks=pytest.mark.slow
        ),
    ],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    changes, flags = request.param
    folder = write_tiny(tmp_path_factory.mktemp("same") / "model", **changes)
    with InferenceEngine() as alone, InferenceEngine() as engine:
        yield Pair(alone.load_text(str(folder)), engine.load_text(str(folder), features=flags))


@pytest.mark.feature("shard.ranks")
@pytest.mark.feature("shard.split")
def test_greedy_text_and_log_probabilities(pair: Pair) -> None:
    for prompt in PROMPTS:
        whole, spread = pair.both(prompt, GREEDY)
        assert spread.text == whole.text
        assert spread.usage == whole.usage
    params = evolve(GREEDY, logprobs=True, top_logprobs=3)
    whole, spread = (list(model.stream(PROMPTS[2], params)) for model in (pair.whole, pair.spread))
    assert text_of(spread) == text_of(whole)
    scores = scores_of(whole)
    assert len(scores) == 4 * GREEDY.max_tokens
    assert scores_of(spread) == pytest.approx(scores, abs=1e-3)


def test_rules_of_single_rows_hold_beside_others(pair: Pair) -> None:
    rules = [
        evolve(GREEDY, temperature=1.0, seed=5),
        evolve(GREEDY, repetition_penalty=1.3, logit_bias=((40, 4.0),)),
        evolve(GREEDY, grammar=Grammar.regex("[a-c]{5}-[0-9]{3}"), ignore_eos=False),
        GREEDY,
    ]
    found: dict[int, str] = {}

    def ask(at: int) -> None:
        found[at] = pair.spread.generate(PROMPTS[at], rules[at]).text

    _together(len(rules), ask)
    assert found == {at: pair.whole.generate(PROMPTS[at], params).text for at, params in enumerate(rules)}


def test_seven_at_once(pair: Pair) -> None:
    found: dict[int, str] = {}

    def ask(at: int) -> None:
        found[at] = pair.spread.generate(PROMPTS[at], GREEDY).text

    _together(len(PROMPTS), ask)
    assert found == {at: pair.whole.generate(prompt, GREEDY).text for at, prompt in enumerate(PROMPTS)}
    assert pair.spread.info["batch"] == pair.whole.info["batch"] > 1  # none was served alone


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again(pair: Pair) -> None:
    first = "the same beginning of a prompt, long enough to be kept:"
    pair.both(first, GREEDY)
    whole, spread = pair.both(first + " and another end", GREEDY)
    assert spread.text == whole.text
    assert spread.usage.cached_tokens == whole.usage.cached_tokens > 40


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_who_leaves_changes_nothing_for_others(pair: Pair, when: str) -> None:
    wanted = pair.whole.generate(PROMPTS[2], GREEDY).text
    leaver = pair.spread.stream("leaving " * 100, evolve(GREEDY, max_tokens=200))
    other = pair.spread.stream(PROMPTS[2], GREEDY)
    for event in leaver:
        if when == "prefill" or not isinstance(event, Progress):
            break
    leaver.close()
    assert text_of(list(other)) == wanted
    assert pair.spread.generate(PROMPTS[2], GREEDY).text == wanted


def test_requests_that_are_not_mirrored_are_refused_by_name(pair: Pair) -> None:
    with pytest.raises(UnsupportedInputError, match="scoring"):
        list(pair.spread.stream(ScoreRequest(text="a text")))
    with pytest.raises(UnsupportedInputError, match="adapters"):
        list(pair.spread.stream(LoadAdapterRequest(name="a", source="somewhere")))
    explained = pair.spread.explain("llm.lora")
    assert not explained.available
    assert "'shard' does not honour" in explained.reason


def _together(count: int, ask: Any) -> None:
    threads = [threading.Thread(target=ask, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
