"""Which texts share a batch: those of similar length, within a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WORTH = 2048
"""Padded tokens that take a GPU as long as it takes to launch the operations of one more batch."""


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped into batches, the longest texts first.

    The padded size of a batch, its rows times its longest row, stays within ``budget``; a text that is
    longer than that has a batch of its own. A batch also ends where the texts that follow are so much
    shorter that padding them would take longer than a batch of their own. Longest first, so that too large
    a budget shows at once.
    """
    batches: list[list[int]] = []
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    for place, position in enumerate(order):
        if batches:
            current = batches[-1]
            longest = max(lengths[current[0]], 1)
            followers = min(len(order) - place, budget // longest - len(current))
            if followers > 0 and followers * (longest - lengths[position]) < _WORTH:
                current.append(position)
                continue
        batches.append([position])
    return batches


__all__ = ["plan_batches"]
