"""What the comparisons of answers accept, on a CPU and on a GPU."""

from __future__ import annotations

import pytest
import sameness
from mlxengine import TextDelta, TokenLogprob, TopLogprob
from sameness import check_same


def said(*scores: tuple[int, float], margin: float = 1.0) -> list[TextDelta]:
    """Greedy tokens with their log-probabilities, and a second best one that is less likely by ``margin``."""
    items = []
    for token, score in scores:
        best = TopLogprob(token_id=token, text="", logprob=score)
        second = TopLogprob(token_id=99, text="", logprob=score - margin)
        items.append(TokenLogprob(token_id=token, text="", logprob=score, top=(best, second)))
    return [TextDelta(text="", token_ids=tuple(token for token, _ in scores), logprobs=tuple(items))]


def test_on_a_cpu_tokens_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sameness, "on_gpu", lambda: False)
    assert check_same(said((1, -0.5), (2, -0.2)), said((1, -0.5), (2, -0.20005)))
    for other in (said((1, -0.5), (3, -0.2), margin=0), said((1, -0.5)), said((1, -0.5), (2, -0.21))):
        with pytest.raises(AssertionError):
            check_same(said((1, -0.5), (2, -0.2)), other)


def test_on_a_gpu_tokens_may_part_where_both_were_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sameness, "on_gpu", lambda: True)
    assert check_same(said((1, -0.5), (2, -0.2)), said((1, -0.53), (2, -0.2)))
    assert not check_same(
        said((1, -0.5), (3, -0.2), (8, -3.0)), said((1, -0.5), (2, -0.2), (9, 0.0), margin=0.05)
    )
    assert not check_same(said((1, -0.5), (3, -0.2)), said((1, -0.5), (2, -0.2)), sampled=True)
    for other in (said((1, -0.5), (3, -0.2)), said((1, -0.8), (2, -0.2)), said((1, -0.5))):
        with pytest.raises(AssertionError):
            check_same(said((1, -0.5), (2, -0.2)), other)
