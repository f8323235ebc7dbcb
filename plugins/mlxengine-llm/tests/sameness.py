"""When two ways to compute an answer count as the same: to the token on a CPU, within a tolerance on a GPU.

A GPU's matrix kernels differ with the shape of a batch, and fp32 products may pass through TF32, whose ten
bits of mantissa leave errors of a thousandth. A random model's best tokens can be closer than that. So there
log-probabilities are compared for as long as the tokens are the same, and greedy tokens may part only where
both were as good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlxengine import TextDelta

ON_CPU, ON_GPU = 1e-4, 0.1
"""Largest difference of two log-probabilities, in nats. The second is a choice: it was not run yet."""


def on_gpu() -> bool:
    return bool(mx.default_device().type != mx.DeviceType.cpu)


def tolerance() -> float:
    return ON_GPU if on_gpu() else ON_CPU


def check_same(
    found: Sequence[Any], wanted: Sequence[Any], *, within: float | None = None, sampled: bool = False
) -> bool:
    """Assert that two streams of events are one answer; whether all their tokens are the same.

    The requests asked for log-probabilities, greedy ones for ``top_logprobs=2`` at least. ``within`` is
    used on a CPU, instead of `ON_CPU`. Where ``sampled`` rows may part on a GPU cannot be told.
    """
    mine, theirs = _scored(found), _scored(wanted)
    pairs = list(zip(mine, theirs, strict=False))
    parted = next((at for at, (one, other) in enumerate(pairs) if one.token_id != other.token_id), None)
    if not on_gpu():
        assert [item.token_id for item in mine] == [item.token_id for item in theirs]
    allowed = ON_GPU if on_gpu() else within or ON_CPU
    for one, other in pairs[:parted]:
        assert one.logprob == pytest.approx(other.logprob, abs=allowed)
    if parted is None:
        assert len(mine) == len(theirs)
        return True
    if not sampled:
        best, second = theirs[parted].top[:2]
        assert best.logprob - second.logprob <= 2 * allowed, "they part where one token was clearly better"
    return False


def _scored(events: Sequence[Any]) -> list[Any]:
    return [item for event in events if isinstance(event, TextDelta) for item in event.logprobs]
