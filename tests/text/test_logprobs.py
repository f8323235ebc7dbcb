"""The log-probabilities of what is generated and of what is scored, over a vocabulary of the usual size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlxengine import ScoreRequest
from safetensors.numpy import load_file, save_file

from .llama import Llama
from .subjects import KINDS, Subject, continued, drawn, said

import llm_harness  # isort: skip (found where `subjects` says)

SIZE = 151_936  # Qwen's


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose logits have the spread of a real model's, about 3."""
    folder = llm_harness.write_tiny(tmp_path_factory.mktemp("large") / "llama", vocab_size=SIZE)
    file = str(folder / "model.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"] *= 8
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    "subject", [kind for kind in KINDS if kind.name == "llm"], ids=["llm"], indirect=True
)
@pytest.mark.parametrize("flags", [{}, {"speculation": True}], ids=["together", "one by one"])
def test_generation_and_score_say_what_fp64_says(
    subject: Subject, large: Path, flags: dict[str, object]
) -> None:
    """Summed in one piece, as mlx does on a CPU, all of them are 2e-4 too large."""
    model = subject.load(large, flags=flags)
    start = [5, 9, 13]
    (events,) = subject.run(model, continued(start, max_tokens=6, top_logprobs=3))
    found = said(events)
    tokens = [*start, *drawn(events)]
    wanted = Llama(large, subject.kind.stored).logprobs(tokens)[len(start) - 1 : -1]
    for row, item in zip(wanted, found, strict=True):
        assert item.logprob == pytest.approx(row[item.token_id], abs=1e-5)
        assert [top.logprob for top in item.top] == pytest.approx(-np.sort(-row)[:3], abs=1e-5)
    (scored,) = subject.run(model, ScoreRequest(tokens=tokens))
    assert scored[0].logprobs[-6:] == pytest.approx([item.logprob for item in found], abs=1e-5)
