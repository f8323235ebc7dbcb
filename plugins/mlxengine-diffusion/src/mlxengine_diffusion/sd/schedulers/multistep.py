"""Solvers of high order in the logarithm of the signal-to-noise ratio.

Sources: Lu et al. 2022 (arXiv:2211.01095) for DPM-Solver++; Zhang and Chen 2022 (arXiv:2204.13902) for
DEIS; Zhao et al. 2023 (arXiv:2302.04867) for UniPC.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from ..scheduler_config import NoiseSettings
from .base import Latents, Scheduler, alpha_and_sigma

_FEW_STEPS = 15
_ROUNDING = 1e-4


class Solver(Scheduler):
    """Levels and timesteps of these solvers, and what the last evaluations said.

    Attributes:
        sigmas: the level before each step and after the last.
        before: what the evaluations said, the newest first.
    """

    spacing: str | None = None

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        times = self.spaced(whole=True, extra=1, spacing=self.spacing)
        sigmas = self.level_at(times)
        if settings.placement != "uniform":
            sigmas = self.placed(self.levels)
            times = self.times_of(sigmas)
            # Whole timesteps, as in diffusers: nearest for one placement, next below for the others. Its
            # float32 puts the highest level just below its own timestep, with the usual betas at least.
            nearest = settings.placement == "karras"
            times = np.round(times) if nearest else np.floor(times - _ROUNDING).clip(0)
        self.timesteps = tuple(times.tolist())
        self.sigmas: list[float] = [*sigmas.tolist(), self._last(sigmas.tolist())]
        self.before: deque[Latents] = deque(maxlen=settings.order)

    def _last(self, sigmas: list[float]) -> float:
        return 0.0 if self.settings.final_zero else float(self.levels[0])

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        alpha, sigma = alpha_and_sigma(self.sigmas[index])
        return clean * alpha + noise * sigma

    def _clean(self, output: Latents, sample: Latents, index: int) -> Latents:
        return self.clean_from(output, sample, *alpha_and_sigma(self.sigmas[index]))

    def _order(self, index: int) -> int:
        """The order of this step: no more than evaluations are there, and less at the end of few steps."""
        left = self.steps - index
        order = min(self.settings.order, len(self.before))
        return min(order, left) if self.settings.lower_order_final and self.steps < _FEW_STEPS else order


class DPMSolver2M(Solver):
    """DPM-Solver++ with the evaluations of earlier steps in memory."""

    name = "dpmpp_2m"

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        self.before.appendleft(clean)
        following = self.sigmas[index + 1]
        if not following:
            return clean, clean
        order = 1 if self._ends_low(index) else self._order(index)
        alpha, sigma = alpha_and_sigma(following)
        h = math.log(self.sigmas[index] / following)
        k = 2 * h if self.settings.sde else h
        drift = alpha * -math.expm1(-k)
        moved = sample * (sigma / alpha_and_sigma(self.sigmas[index])[1] * math.exp(h - k)) + clean * drift
        if order > 1:
            h0 = math.log(self.sigmas[index - 1] / self.sigmas[index])
            slope = (clean - self.before[1]) * (h / h0)
            # How much a slope adds: the average over the step, exact or by the midpoint.
            exact = alpha * (1 + math.expm1(-k) / k)
            if order == 2:
                moved = moved + slope * (exact if self.settings.heun else 0.5 * drift)
            else:
                h1 = math.log(self.sigmas[index - 2] / self.sigmas[index - 1])
                older = (self.before[1] - self.before[2]) * (h / h1)
                bend = (slope - older) * (1 / (h0 + h1))
                moved = moved + (slope + bend * h0) * exact
                moved = moved + bend * (h * alpha * (0.5 - (math.expm1(-k) + k) / k**2))
        if self.settings.sde:
            moved = moved + noise * (sigma * math.sqrt(-math.expm1(-2 * h)))
        return moved, clean

    def _ends_low(self, index: int) -> bool:
        return index + 1 == self.steps and self.settings.euler_at_final


class DPMSolver2MSDE(DPMSolver2M):
    """The same with fresh noise at each step."""

    name = "dpmpp_2m_sde"
    stochastic = True


class DPMSolver2S(Solver):
    """DPM-Solver++ in pairs of steps: the second starts again where the first did, and knows more."""

    name = "dpmpp_2s"
    spacing = "linspace"

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        pairs = settings.order == 2
        lower = settings.lower_order_final or settings.final_zero or steps % settings.order
        self._second = [pairs and index % 2 == 1 for index in range(steps)]
        if (lower and steps % 2 == 0) or settings.final_zero:
            self._second[-1] = False
        self._start: Latents = None

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        following, second = self.sigmas[index + 1], self._second[index] and self._start is not None
        if not following:
            return clean, clean
        if not second:
            self._start = sample
        self.before.appendleft(clean)
        from_level = self.sigmas[index - 1 if second else index]
        alpha, sigma = alpha_and_sigma(following)
        h = math.log(from_level / following)
        drift = alpha * -math.expm1(-h)
        base = self.before[1] if second else clean
        moved = self._start * (sigma / alpha_and_sigma(from_level)[1]) + base * drift
        if second:
            slope = (clean - base) * (h / math.log(from_level / self.sigmas[index]))
            exact = alpha * (1 + math.expm1(-h) / h)
            moved = moved + slope * (exact if self.settings.heun else 0.5 * drift)
        return moved, clean


class DEIS(Solver):
    """DEIS: the noise as a polynomial in the logarithm of the level, integrated exactly."""

    name = "deis"

    def _last(self, sigmas: list[float]) -> float:
        return float(self.levels[0]) if self.settings.placement == "uniform" else sigmas[-1]

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        now, following = self.sigmas[index], self.sigmas[index + 1]
        alpha, sigma = alpha_and_sigma(now)
        clean = self.clean_from(output, sample, alpha, sigma)
        error = self.noise_from(output, sample, alpha, sigma)
        self.before.appendleft(error)
        ahead = alpha_and_sigma(following)[0]
        if self._order(index) == 1:
            return sample * (ahead / alpha) + error * (ahead * (following - now)), clean
        old = self.sigmas[index - 1]
        new_share = _weight(following, now, old) - _weight(now, now, old)
        old_share = _weight(following, old, now) - _weight(now, old, now)
        return (sample / alpha + error * new_share + self.before[1] * old_share) * ahead, clean


class UniPC(Solver):
    """UniPC: each evaluation first corrects the step that led to it, then predicts the next."""

    name = "unipc"

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        self._from: Latents = None
        self._used = 1

    def _last(self, sigmas: list[float]) -> float:
        if self.settings.final_zero or self.settings.placement == "uniform":
            return super()._last(sigmas)
        return sigmas[-1]

    def _order(self, index: int) -> int:
        order = min(self.settings.order, len(self.before))
        return min(order, self.steps - index) if self.settings.lower_order_final else order

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        if self._from is not None and index - 1 not in self.settings.uncorrected:
            sample = self._moved(self._from, index, self._used, clean)
        self.before.appendleft(clean)
        self._from, self._used = sample, self._order(index)
        if not self.sigmas[index + 1]:
            return clean, clean
        return self._moved(sample, index + 1, self._used, None), clean

    def _moved(self, sample: Latents, to: int, order: int, ahead: Latents) -> Latents:
        """From evaluation ``to - 1`` to ``to``; with what the model says ``ahead``, corrected by it."""
        now, following = self.sigmas[to - 1], self.sigmas[to]
        alpha, sigma = alpha_and_sigma(following)
        h = math.log(now / following)
        if not h:
            return sample
        growth = math.expm1(-h)
        ratios = [-math.log(self.sigmas[to - 1 - back] / now) / h for back in range(1, order)]
        shares = _unipc_shares([*ratios, 1.0], -h, -h if self.settings.bh1 else growth, ahead is not None)
        newest = self.before[0]
        slopes = [(self.before[back] - newest) / ratio for back, ratio in enumerate(ratios, 1)]
        if ahead is not None:
            slopes.append(ahead - newest)
        moved = sample * (sigma / alpha_and_sigma(now)[1]) - newest * (alpha * growth)
        scale = alpha * (-h if self.settings.bh1 else growth)
        for share, slope in zip(shares, slopes, strict=True):
            moved = moved - slope * (scale * share)
        return moved


def _unipc_shares(ratios: list[float], width: float, scale: float, corrects: bool) -> list[float]:
    """The weights of the slopes: exact for polynomials up to the order (theorem 3.1 of the source)."""
    order = len(ratios)
    if (order == 2 and not corrects) or order == 1:
        return [0.5] if corrects or order == 2 else []
    rows, wanted = [], []
    value, factorial = math.expm1(width) / width - 1, 1.0
    for power in range(order):
        rows.append([ratio**power for ratio in ratios])
        wanted.append(value * factorial / scale)
        factorial *= power + 2
        value = value / width - 1 / factorial
    size = order if corrects else order - 1
    found: list[float] = np.linalg.solve(np.array(rows)[:size, :size], np.array(wanted)[:size]).tolist()
    return found


def _weight(level: float, one: float, other: float) -> float:
    """An antiderivative of the linear interpolation in log level that is 1 at ``one`` and 0 at ``other``."""
    return level * (math.log(level) - math.log(other) - 1) / (math.log(one) - math.log(other))


__all__ = ["DEIS", "DPMSolver2M", "DPMSolver2MSDE", "DPMSolver2S", "UniPC"]
