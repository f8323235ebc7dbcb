"""Scores are the model's own log-probabilities, however the text is cut into pieces."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import pytest
from llm_harness import Plugin, raw, tokens_of
from mlxengine import Finished, InferenceEngine, ScoreRequest, TextScore
from mlxengine.errors import InvalidParameterError, PromptTooLongError

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


def test_what_cannot_be_scored_is_refused(plugin: Plugin, tiny: Path) -> None:
    model = plugin.load(tiny, context_length=40)
    for wrong in (ScoreRequest(text=""), ScoreRequest(tokens=[5]), ScoreRequest(tokens=[5, 10**6])):
        with pytest.raises(InvalidParameterError):
            plugin.start(model, wrong)
    with pytest.raises(PromptTooLongError):
        plugin.start(model, ScoreRequest(text=TEXT))
    with pytest.raises(InvalidParameterError):
        ScoreRequest()


def test_a_handle_scores_a_text(tiny: Path) -> None:
    with InferenceEngine() as engine, engine.load_text(str(tiny)) as model:
        assert model.score(TEXT).perplexity > 1
