"""Where a sampler's noise levels lie between the highest and the lowest.

Sources: Karras et al. 2022 (arXiv:2206.00364), equation 5, with ρ = 7; a geometric series; and the
quantiles of a Beta(0.6, 0.6) distribution (Lee et al. 2024, arXiv:2407.12173).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_RHO = 7.0
_SHAPE = 0.6
_HALVINGS = 60


def placed(placement: str, steps: int, low: float, high: float) -> Any:
    """``steps`` levels from ``high`` to ``low``, float64; ``placement`` is karras, exponential or beta."""
    if placement == "karras":
        first, last = high ** (1 / _RHO), low ** (1 / _RHO)
        return (first + np.linspace(0, 1, steps) * (last - first)) ** _RHO
    if placement == "exponential":
        return np.exp(np.linspace(math.log(high), math.log(low), steps))
    return np.array([low + beta_quantile(part) * (high - low) for part in 1 - np.linspace(0, 1, steps)])


def beta_quantile(part: float) -> float:
    """Where the distribution function of Beta(0.6, 0.6) is ``part``, from 0 to 1."""
    if part > 0.5:
        return 1 - beta_quantile(1 - part)
    low, high = 0.0, 0.5
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_below(middle) < part else (low, middle)
    return (low + high) / 2


def _beta_below(x: float) -> float:
    """The distribution function at ``x`` of at most one half, by a power series (NIST DLMF 8.17.7)."""
    if x <= 0:
        return 0.0
    term, total = 1.0, 1.0
    for n in range(1, 200):
        term *= (n - 1 + 1 - _SHAPE) * (n - 1 + _SHAPE) / ((n + _SHAPE) * n) * x
        total += term
        if term < 1e-17 * total:
            break
    whole = math.gamma(_SHAPE) ** 2 / math.gamma(2 * _SHAPE)
    return float(x**_SHAPE / _SHAPE * total / whole)


__all__ = ["beta_quantile", "placed"]
