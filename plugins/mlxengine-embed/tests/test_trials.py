"""Some two hundred trials beside sentence-transformers: none is wrong, none fails without a typed error."""

from __future__ import annotations

import collections
import os
import sys

import pytest
import trials


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("group", "right"),
    [("arrangements", 44), ("cross-encoders", 21), ("architectures", 28), ("arguments", 65)],
)
def test_no_trial_is_wrong_or_untyped_and_most_are_right(group: str, right: int) -> None:
    python = os.environ.get("MLXENGINE_PARITY_PYTHON", sys.executable)
    found = list(trials.run([group], python))
    assert [item for item in found if item.verdict in trials.BAD] == []
    assert all(item.reason for item in found if item.verdict == "refused")
    assert collections.Counter(item.verdict for item in found)["right"] >= right
