"""Scores are the model's own log-probabilities, whatever its kind and however the text is cut into pieces."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlxengine import AsyncInferenceEngine, Finished, InferenceEngine, ScoreRequest, TextScore
from mlxengine.errors import InvalidParameterError, PromptTooLongError, UnsupportedInputError
from mlxengine.toolkit.joining import Company
from mlxengine.toolkit.logprobs import normalised

from .llama import Llama
from .subjects import KINDS, Subject, continued, drawn, logprobs_of, raw, said

TEXT = "a text whose probability is asked for " * 5


def near(wanted: Any) -> Any:
    return pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("budget_ms", [0.001, 1000])
def test_a_score_is_what_numpy_computes_in_one_pass(subject: Subject, llama: Llama, budget_ms: float) -> None:
    model = subject.load()
    (events,) = subject.run(model, ScoreRequest(text=TEXT), budget_ms=budget_ms)
    found, end = events
    assert isinstance(found, TextScore)
    assert isinstance(end, Finished)
    tokens = subject.tokens(model, TEXT)
    assert list(found.token_ids) == tokens[1:]
    wanted = llama.score(tokens)
    assert found.logprobs == near(wanted)
    assert found.perplexity == pytest.approx(math.exp(-wanted.mean()), rel=1e-4)


def test_what_the_model_generates_scores_as_it_was_drawn(subject: Subject) -> None:
    model = subject.load()
    start = subject.tokens(model, "start")
    request = continued(start, max_tokens=10, temperature=1.0, seed=1, logprobs=True)
    (events,) = subject.run(model, request)
    (scored,) = subject.scores(model, tokens=[*start, *drawn(events)])
    assert scored.logprobs[-10:] == near([item.logprob for item in said(events)])


def test_a_continuation_is_scored_behind_its_context(subject: Subject, llama: Llama) -> None:
    model = subject.load()
    before, text = "It was a dark and", " stormy night"
    (found,) = subject.scores(model, text=text, context=before)
    tokens, start = subject.tokens(model, before + text), len(subject.tokens(model, before))
    assert list(found.token_ids) == tokens[start:]
    assert found.logprobs == near(llama.score(tokens)[start - 1 :])


def test_with_an_empty_context_the_first_token_is_scored_behind_the_opening_token(
    subject: Subject, llama: Llama
) -> None:
    model = subject.load()
    (found,) = subject.scores(model, text="abc", context="")
    tokens = [subject.opening(model), *subject.tokens(model, "abc")]
    assert list(found.token_ids) == tokens[1:]
    assert found.logprobs == near(llama.score(tokens))


def test_a_token_that_holds_some_of_the_context_is_scored(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "merging"
    shutil.copytree(subject.folder, folder)
    document = json.loads(folder.joinpath("tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    merged = vocabulary.pop("Ń")  # a byte that no text here has becomes the token of two letters
    vocabulary["bc"], document["model"]["merges"] = merged, [["b", "c"]]
    folder.joinpath("tokenizer.json").write_text(json.dumps(document))
    model = subject.load(folder)
    llama = Llama(folder, subject.kind.stored)
    (found,) = subject.scores(model, text="cd", context="ab", top_logprobs=1)
    assert [token.text for token in found.tokens] == ["bc", "d"]
    assert found.logprobs == near(llama.score(subject.tokens(model, "abcd")))
    (found,) = subject.scores(model, text="c", context="b")
    assert list(found.token_ids) == [merged]


def test_what_the_model_says_by_itself_is_greedy_and_nothing_else(subject: Subject) -> None:
    model = subject.load()
    start = subject.tokens(model, "s")
    (events,) = subject.run(model, continued(start, max_tokens=6))
    tokens = [*start, *drawn(events)]
    others = [[*tokens[:at], tokens[at] ^ 1, *tokens[at + 1 :]] for at in range(1, len(tokens))]
    found = subject.scores(model, tokens=[tokens, *others])
    assert [event.greedy for event in found] == [True, *[False] * len(others)]


def test_alternatives_are_the_networks_best_with_their_bytes(subject: Subject, llama: Llama) -> None:
    model = subject.load()
    (found,) = subject.scores(model, text="é!", context="a", top_logprobs=5)
    wanted = llama.logprobs(subject.tokens(model, "aé!"))
    assert b"".join(token.bytes or b"?" for token in found.tokens) == "é!".encode()
    for row, token, value in zip(wanted, found.tokens, found.logprobs, strict=False):
        assert token.logprob == value
        assert [item.token_id for item in token.top] == np.argsort(-row)[:5].tolist()
        assert [item.logprob for item in token.top] == near(-np.sort(-row)[:5])


@pytest.mark.parametrize("size", [49_152, 50_257, 151_936])
def test_a_large_vocabulary_costs_no_precision(size: int) -> None:
    logits = np.random.default_rng(0).normal(size=(3, size)).astype(np.float32) * 3
    logits[0, : size // 2] = -np.inf  # a grammar rules tokens out, whole blocks of them
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    found = np.array(normalised(mx.array(logits)))
    finite = np.isfinite(exact)
    assert np.array_equal(np.isfinite(found), finite)
    assert np.abs(found[finite] - exact[finite]).max() < 1e-5


@pytest.mark.parametrize("budget_ms", [0.001, 1000])
def test_a_text_longer_than_the_context_is_scored_in_windows(
    subject: Subject, llama: Llama, budget_ms: float
) -> None:
    model = subject.load(context_length=40)
    text = "qx" * 53 + "q"  # a token for each letter
    (found,) = subject.scores(model, budget_ms=budget_ms, text=text, context="", rolling=True)
    tokens = [subject.opening(model), *subject.tokens(model, text)]
    assert len(tokens) == 108
    expected: list[float] = []
    # What is read, and how many of its last positions count: 40, 40, and the 27 that are left.
    for start, end, scored in ((0, 41, 40), (40, 81, 40), (67, 108, 27)):
        expected += llama.score(tokens[start:end])[-scored:].tolist()
    assert list(found.token_ids) == tokens[1:]
    assert found.logprobs == near(expected)


def test_a_context_longer_than_the_models_is_cut_on_the_left_when_rolling(
    subject: Subject, llama: Llama
) -> None:
    model = subject.load(context_length=40)
    (found,) = subject.scores(model, text=" the end", context=TEXT, rolling=True)
    tokens = subject.tokens(model, TEXT + " the end")
    count = len(tokens) - len(subject.tokens(model, TEXT))
    assert found.logprobs == near(llama.score(tokens[-41:])[-count:])


def test_several_texts_are_read_together_and_score_as_each_does_alone(subject: Subject) -> None:
    model = subject.load()
    texts = [TEXT[:length] for length in (9, 40, 5, 25, 9, 190)]
    alone = [subject.scores(model, text=text, top_logprobs=2)[0] for text in texts]
    shapes = subject.passes(model)
    model.trial.hold()
    del shapes[:]
    together = subject.scores(model, text=texts, top_logprobs=2)
    assert max(rows for rows, _ in shapes) > 1, shapes
    assert len(shapes) < len(texts)
    assert [event.index for event in together] == list(range(len(texts)))
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == near(other.logprobs)
        assert one.greedy == other.greedy
        assert [token.top[0].token_id for token in one.tokens] == [
            token.top[0].token_id for token in other.tokens
        ]


def test_texts_are_read_one_by_one_where_the_trial_found_padding_wrong(subject: Subject) -> None:
    model = subject.load()
    model.trial.hold = lambda: False
    texts = [[5, 6, 7, 8], [5, 6, 7, 8, 9, 10], [9, 8, 7, 6]]
    alone = [subject.scores(model, tokens=text)[0].logprobs for text in texts]
    shapes = subject.passes(model)
    for company, rows in (({"equal": True}, [2, 1]), ({"equal": False}, [1, 1, 1])):
        model.trial.company = Company(padded=False, behind=False, **company)
        del shapes[:]
        found = subject.scores(model, tokens=texts)
        assert [count for count, _ in shapes] == rows
        for one, other in zip(found, alone, strict=True):
            assert one.logprobs == near(other)


def test_what_scoring_finds_out_of_padding_holds_for_answers_too(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject.load()
    subject.run(model, raw("a first request", max_tokens=2))
    shapes = subject.passes(model)

    def wrong(_prompts: Any) -> Any:
        raise ValueError("padding")

    running = subject.admitted(model, raw("x" * 9, max_tokens=40, ignore_eos=True))
    monkeypatch.setattr(model.trial, "_padded", wrong)
    monkeypatch.setattr(model.trial, "_behind", wrong)

    def start(request: Any) -> Callable[[], Any]:
        return lambda: subject.admitted(model, request)

    later = {3: [start(ScoreRequest(text=["one text", "a longer text"]))]}
    later[20] = [start(raw("y" * length, max_tokens=3)) for length in (29, 31)]
    found = subject.plugin.run([running], later=later)
    assert all(isinstance(events[-1], Finished) for events in found)
    assert model.trial.done
    assert not model.trial.company.padded
    assert [shape for shape in shapes if shape[0] > 1 and shape[1] > 1] == []


def test_what_cannot_be_scored_is_refused(subject: Subject) -> None:
    model = subject.load(context_length=40)
    for wrong in (
        ScoreRequest(text=""),
        ScoreRequest(text="", context="before"),
        ScoreRequest(text=["fine, and longer", ""]),
        ScoreRequest(tokens=[5]),
        ScoreRequest(tokens=[5, 10**6]),
        ScoreRequest(tokens=[[5, 6], [5]]),
    ):
        with pytest.raises(InvalidParameterError):
            subject.run(model, wrong)
    with pytest.raises(PromptTooLongError):
        subject.run(model, ScoreRequest(text=TEXT * 40))
    with pytest.raises(PromptTooLongError, match="rolling"):
        subject.run(model, ScoreRequest(tokens=[5] * 42))
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


@pytest.mark.parametrize(
    "subject", [kind for kind in KINDS if kind.name == "vlm"], ids=["vlm"], indirect=True
)
def test_the_place_of_a_picture_has_no_score(subject: Subject) -> None:
    model = subject.load()
    for wrong in (ScoreRequest(text="<image>What is this?"), ScoreRequest(tokens=[5, 4, 6])):
        with pytest.raises(UnsupportedInputError, match=r"token 4 .* stands for media") as refused:
            subject.run(model, wrong)
        assert refused.value.hint


def test_a_handle_scores_texts_for_threads_and_for_asyncio(subject: Subject) -> None:
    folder = str(subject.folder)
    with InferenceEngine() as engine, engine.load_text(folder) as model:
        assert model.score(TEXT).perplexity > 1
        found = model.score([TEXT, "short"], context=["", "a "], top_logprobs=1)
        with pytest.raises(InvalidParameterError, match="Unknown parameter 'contexts'"):
            model.score(TEXT, contexts="a")  # type: ignore[call-overload]

    async def ask() -> tuple[TextScore, ...]:
        async with AsyncInferenceEngine() as engine:
            model = await engine.load_text(folder)
            return await model.score([TEXT, "short"], context=["", "a "], top_logprobs=1)

    assert "".join(token.text for token in found[1].tokens).endswith("short")
    for one, other in zip(asyncio.run(ask()), found, strict=True):
        assert one.logprobs == near(other.logprobs)
        assert logprobs_of(one).size == len(other.token_ids)
