"""Which texts share a batch: those of similar length, within a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions grouped into batches, the longest texts first.

    The padded size of a batch, its rows times its longest row, stays within ``budget``; a text that is
    longer than that has a batch of its own. Longest first, so that too large a budget shows at once.
    """
    batches: list[list[int]] = []
    for position in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        current = batches[-1] if batches else None
        if current is not None and (len(current) + 1) * max(lengths[current[0]], 1) <= budget:
            current.append(position)
        else:
            batches.append([position])
    return batches


__all__ = ["plan_batches"]
