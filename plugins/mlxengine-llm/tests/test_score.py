"""Scores are the model's own log-probabilities, however the text is cut into pieces."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from llm_harness import Plugin, passes, raw, tokens_of
from mlxengine import AsyncInferenceEngine, Finished, InferenceEngine, ScoreRequest, TextScore
from mlxengine.errors import InvalidParameterError, PromptTooLongError
from mlxengine.toolkit.joining import Company
from mlxengine.toolkit.logprobs import normalised

TEXT = "a text whose probability is asked for " * 5


def test_a_score_is_what_one_forward_pass_gives(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    for budget in (0.001, 1000):
        (events,) = plugin.run([plugin.start(model, ScoreRequest(text=TEXT), budget_ms=budget)])
        found, end = events
        assert isinstance(found, TextScore)
        assert isinstance(end, Finished)
        tokens = model.tokenizer.encode(TEXT)
        with plugin.backend.stream():
            logits = model.network(mx.array([tokens]))[0]
            wanted = (logits - mx.logsumexp(logits, axis=-1, keepdims=True))[
                mx.arange(len(tokens) - 1), mx.array(tokens[1:])
            ].tolist()
        assert found.logprobs == pytest.approx(wanted, abs=1e-4)
        assert found.perplexity == pytest.approx(math.exp(-sum(wanted) / len(wanted)), rel=1e-4)


def test_what_the_model_generates_scores_as_it_was_drawn(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    request = raw("start", max_tokens=10, temperature=1.0, seed=1, ignore_eos=True, logprobs=True)
    (events,) = plugin.run([plugin.start(model, request)])
    drawn = [item.logprob for event in events[:-1] for item in event.logprobs]
    tokens = [*model.tokenizer.encode("start"), *tokens_of(events)]
    (scored,) = plugin.run([plugin.start(model, ScoreRequest(tokens=tokens))])
    assert scored[0].logprobs[-10:] == pytest.approx(drawn, abs=1e-4)


def reference(plugin: Plugin, model: Any, tokens: list[int]) -> Any:
    """Log-probabilities behind each of the tokens, of the network called by itself; (tokens, vocabulary)."""
    with plugin.backend.stream():
        logits = model.network(mx.array([tokens]))[0].astype(mx.float32)
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def scores(plugin: Plugin, model: Any, budget_ms: float = 1000, **asked: Any) -> list[TextScore]:
    (events,) = plugin.run([plugin.start(model, ScoreRequest(**asked), budget_ms=budget_ms)])
    assert isinstance(events[-1], Finished), events[-1]
    return sorted(events[:-1], key=lambda event: event.index)


def test_a_continuation_is_scored_behind_its_context(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    before, text = "It was a dark and ", "stormy night"
    (found,) = scores(plugin, model, text=text, context=before)
    tokens, start = model.tokenizer.encode(before + text), len(model.tokenizer.encode(before))
    wanted = reference(plugin, model, tokens)
    assert list(found.token_ids) == tokens[start:]
    expected = [wanted[at - 1, tokens[at]] for at in range(start, len(tokens))]
    assert found.logprobs == pytest.approx(expected, abs=1e-4)


def test_with_an_empty_context_the_first_token_is_scored_behind_the_opening_token(
    plugin: Plugin, tiny: Path
) -> None:
    model = plugin.load(tiny)
    (found,) = scores(plugin, model, text="abc", context="")
    tokens = [model.tokenizer.bos_token_id, *model.tokenizer.encode("abc")]
    wanted = reference(plugin, model, tokens)
    assert list(found.token_ids) == tokens[1:]
    assert found.logprobs == pytest.approx([wanted[at, tokens[at + 1]] for at in range(3)], abs=1e-4)


def test_a_token_that_holds_some_of_the_context_is_scored(
    plugin: Plugin, edited: Callable[..., Path]
) -> None:
    folder = edited()
    document = json.loads(folder.joinpath("tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    merged = vocabulary.pop("Ń")  # a byte that no text here has becomes the token of two letters
    vocabulary["bc"], document["model"]["merges"] = merged, [["b", "c"]]
    folder.joinpath("tokenizer.json").write_text(json.dumps(document))
    model = plugin.load(folder)
    (found,) = scores(plugin, model, text="cd", context="ab")
    assert [model.tokenizer.decode([token]) for token in found.token_ids] == ["bc", "d"]
    tokens = model.tokenizer.encode("abcd")
    wanted = reference(plugin, model, tokens)
    assert found.logprobs == pytest.approx([wanted[0, tokens[1]], wanted[1, tokens[2]]], abs=1e-4)
    (found,) = scores(plugin, model, text="c", context="b")
    assert [model.tokenizer.decode([token]) for token in found.token_ids] == ["bc"]


def test_what_the_model_says_by_itself_is_greedy_and_nothing_else(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    (events,) = plugin.run([plugin.start(model, raw("s", max_tokens=6, temperature=0, ignore_eos=True))])
    tokens = [*model.tokenizer.encode("s"), *tokens_of(events)]
    others = [[*tokens[:at], tokens[at] ^ 1, *tokens[at + 1 :]] for at in range(1, len(tokens))]
    found = scores(plugin, model, tokens=[tokens, *others])
    assert [event.greedy for event in found] == [True, *[False] * len(others)]


def test_alternatives_are_the_networks_best_with_their_bytes(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    (found,) = scores(plugin, model, text="é!", context="a", top_logprobs=5)
    wanted = reference(plugin, model, model.tokenizer.encode("aé!"))
    assert b"".join(token.bytes or b"?" for token in found.tokens) == "é!".encode()
    for row, token, value in zip(wanted, found.tokens, found.logprobs, strict=False):
        assert token.logprob == value
        assert [item.token_id for item in token.top] == np.argsort(-row)[:5].tolist()
        assert [item.logprob for item in token.top] == pytest.approx(-np.sort(-row)[:5], abs=1e-4)


def test_a_large_vocabulary_costs_no_precision(plugin: Plugin) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 49_152)).astype(np.float32) * 3
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    with plugin.backend.stream():
        found = np.array(normalised(mx.array(logits)))
    assert np.abs(found - exact).max() < 1e-5


@pytest.mark.parametrize("budget_ms", [0.001, 1000])
def test_a_text_longer_than_the_context_is_scored_in_windows(
    plugin: Plugin, tiny: Path, budget_ms: float
) -> None:
    model = plugin.load(tiny, context_length=40)
    text = TEXT[:107]
    (found,) = scores(plugin, model, budget_ms, text=text, context="", rolling=True)
    tokens = [model.tokenizer.bos_token_id, *model.tokenizer.encode(text)]
    expected: list[float] = []
    # What is read, and how many of its last positions count: 40, 40, and the 27 that are left.
    for start, end, scored in ((0, 41, 40), (40, 81, 40), (67, 108, 27)):
        wanted = reference(plugin, model, tokens[start : end - 1])
        values = [wanted[at - start - 1, tokens[at]] for at in range(end - scored, end)]
        expected += values
    assert list(found.token_ids) == tokens[1:]
    assert found.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_context_longer_than_the_models_is_cut_on_the_left_when_rolling(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, context_length=40)
    (found,) = scores(plugin, model, text="the end", context=TEXT, rolling=True)
    tokens = model.tokenizer.encode(TEXT + "the end")[-41:]
    wanted = reference(plugin, model, tokens[:-1])
    assert found.logprobs == pytest.approx([wanted[at - 1, tokens[at]] for at in range(34, 41)], abs=1e-4)


def test_several_texts_are_read_together_and_score_as_each_does_alone(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    texts = [TEXT[:length] for length in (9, 40, 3, 25, 9, 190)]
    alone = [scores(plugin, model, text=text, top_logprobs=2)[0] for text in texts]
    shapes = passes(model, plugin)
    together = scores(plugin, model, text=texts, top_logprobs=2)
    assert max(rows for rows, _ in shapes) > 1, shapes
    assert len(shapes) < len(texts)
    assert [event.index for event in together] == list(range(len(texts)))
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.greedy == other.greedy
        assert [token.top[0].token_id for token in one.tokens] == [
            token.top[0].token_id for token in other.tokens
        ]


def test_texts_are_read_one_by_one_where_the_trial_found_padding_wrong(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny)
    model.trial.hold = lambda: False
    texts = ["one text", "a longer text", "two text"]
    alone = [scores(plugin, model, text=text)[0].logprobs for text in texts]
    for company, rows in (({"equal": True}, [2, 1]), ({"equal": False}, [1, 1, 1])):
        model.trial.company = Company(padded=False, behind=False, **company)
        shapes = passes(model, plugin)
        found = scores(plugin, model, text=texts)
        assert [count for count, _ in shapes] == rows
        for one, other in zip(found, alone, strict=True):
            assert one.logprobs == pytest.approx(other, abs=1e-4)


def test_what_scoring_finds_out_of_padding_holds_for_answers_too(
    plugin: Plugin, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plugin.load(tiny)
    plugin.text(model, "a first request", max_tokens=2)
    shapes = passes(model, plugin)

    def wrong(_prompts: Any) -> Any:
        raise ValueError("padding")

    running = plugin.start(model, raw("x" * 9, max_tokens=40, ignore_eos=True))
    monkeypatch.setattr(model.trial, "_padded", wrong)
    monkeypatch.setattr(model.trial, "_behind", wrong)
    later = {3: [lambda: plugin.start(model, ScoreRequest(text=["one text", "a longer text"]))]}
    later[20] = [
        lambda length=length: plugin.start(model, raw("y" * length, max_tokens=3)) for length in (20, 31)
    ]
    found = plugin.run([running], later=later)
    assert all(isinstance(events[-1], Finished) for events in found)
    assert model.trial.done
    assert not model.trial.company.padded
    assert [shape for shape in shapes if shape[0] > 1 and shape[1] > 1] == []


def test_what_cannot_be_scored_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, context_length=40)
    for wrong in (
        ScoreRequest(text=""),
        ScoreRequest(text="", context="before"),
        ScoreRequest(text=["fine", ""]),
        ScoreRequest(tokens=[5]),
        ScoreRequest(tokens=[5, 10**6]),
        ScoreRequest(tokens=[[5, 6], [5]]),
    ):
        with pytest.raises(InvalidParameterError):
            plugin.start(model, wrong)
    with pytest.raises(PromptTooLongError, match="rolling"):
        plugin.start(model, ScoreRequest(text=TEXT))
    wrong_requests: list[dict[str, Any]] = [
        {},
        {"text": "a", "tokens": [1, 2]},
        {"text": []},
        {"tokens": [[1, 2], 3]},
        {"tokens": [1, 2], "context": "a"},
        {"text": ["a", "b"], "context": ["a"]},
        {"text": "a", "top_logprobs": 21},
    ]
    for asked in wrong_requests:
        with pytest.raises(InvalidParameterError):
            ScoreRequest(**asked)


def test_a_handle_scores_texts_for_threads_and_for_asyncio(tiny: Path) -> None:
    with InferenceEngine() as engine, engine.load_text(str(tiny)) as model:
        assert model.score(TEXT).perplexity > 1
        found = model.score([TEXT, "short"], context=["", "a "], top_logprobs=1)
        with pytest.raises(InvalidParameterError, match="Unknown parameter 'contexts'"):
            model.score(TEXT, contexts="a")  # type: ignore[call-overload]

    async def ask() -> tuple[TextScore, ...]:
        async with AsyncInferenceEngine() as engine:
            model = await engine.load_text(str(tiny))
            return await model.score([TEXT, "short"], context=["", "a "], top_logprobs=1)

    assert [len(item.token_ids) for item in found] == [len(TEXT), len("short")]
    for one, other in zip(asyncio.run(ask()), found, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
