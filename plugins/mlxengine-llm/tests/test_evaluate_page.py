"""The adapter of docs/how-to/evaluate.md, asked as lm-evaluation-harness asks: requests with ``args``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlxengine import GenerateParams, InferenceEngine, ModelConfiguration, TextRequest

from tests.docs.blocks import ROOT, blocks

LONG = "one word after another, and so on, " * 4


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> Iterator[Any]:
    """The page's class around the tiny model, whose context is 64 tokens."""
    space: dict[str, Any] = {}
    first = next(block for block in blocks(ROOT / "docs/how-to/evaluate.md") if block.runs)
    exec(first.text, space)
    with InferenceEngine() as engine:
        yield space["Asked"](engine.load_text(ModelConfiguration(id=str(tiny), context_length=64)))


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Any:
    """mlx-lm's network and its tokenizer, called without the engine."""
    from mlx_lm import load

    network, tokenizer = load(str(tiny))[:2]

    def logprobs(tokens: list[int]) -> Any:
        logits = np.array(network(mx.array([tokens]))[0].astype(mx.float32)).astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    return SimpleNamespace(tokenizer=tokenizer, logprobs=logprobs)


def asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_a_task_of_choices_gets_the_networks_log_likelihoods(adapter: Any, reference: Any) -> None:
    pairs = [
        ("Question: a?\nAnswer:", " yes"),
        ("Question: a?\nAnswer: ", "no"),
        ("", "alone"),
        (LONG, " end"),
    ]
    encode, opening = reference.tokenizer.encode, reference.tokenizer.bos_token_id
    found = adapter.loglikelihood([asked(*pair) for pair in pairs])
    for (context, text), (likelihood, greedy) in zip(pairs, found, strict=True):
        kept = context.rstrip()
        whole = encode(context + text) if kept else [opening, *encode(text)]
        count = len(whole) - (len(encode(kept)) if kept else 1)
        whole = whole[-65:]
        rows = reference.logprobs(whole[:-1])[-count:]
        wanted = sum(row[token] for row, token in zip(rows, whole[-count:], strict=True))
        assert likelihood == pytest.approx(wanted, abs=1e-4)
        assert greedy == (rows.argmax(axis=-1).tolist() == whole[-count:])


def test_what_the_network_would_say_is_greedy(adapter: Any, reference: Any) -> None:
    for before in map(chr, range(97, 123)):
        best = reference.logprobs(reference.tokenizer.encode(before))[-1].argmax()
        said = reference.tokenizer.decode([int(best)])
        if said.isascii() and said.isprintable() and not said.isspace():
            break
    else:
        raise AssertionError("no letter is followed by a character")
    other = "x" if said != "x" else "y"
    found = adapter.loglikelihood([asked(before, said), asked(before, other)])
    assert [greedy for _, greedy in found] == [True, False]


def test_a_long_text_is_scored_in_windows_of_the_context(adapter: Any, reference: Any) -> None:
    tokens = [reference.tokenizer.bos_token_id, *reference.tokenizer.encode(LONG)]
    wanted = 0.0
    for first in range(1, len(tokens), 64):
        end = min(first + 64, len(tokens))
        window = tokens[max(0, end - 65) : end]
        rows = reference.logprobs(window[:-1])[-(end - first) :]
        wanted += sum(row[token] for row, token in zip(rows, tokens[first:end], strict=True))
    assert adapter.loglikelihood_rolling([asked(LONG)]) == pytest.approx([wanted], abs=1e-3)


def test_answers_end_at_the_stop_texts(adapter: Any) -> None:
    params = GenerateParams(max_tokens=12, temperature=0)
    whole = adapter.model.generate(TextRequest(prompt="Say", params=params)).text
    stop = whole[3]
    options = {"until": [stop], "max_gen_toks": 12, "do_sample": False}
    found = adapter.generate_until([asked("Say", options), asked("Say", {"until": stop, "max_gen_toks": 2})])
    assert found[0] == whole[: whole.index(stop)]
    assert len(found) == 2
    assert found[0].startswith(found[1][:1])
