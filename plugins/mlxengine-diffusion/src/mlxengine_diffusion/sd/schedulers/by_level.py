"""Samplers in the parametrisation of Karras et al.: the sample is clean + level * noise.

Sources: Karras et al. 2022 (arXiv:2206.00364) for Euler and Heun; Lu et al. 2022 (arXiv:2211.01095) for the
stochastic DPM-Solver++, in the form of two evaluations a step that k-diffusion gave it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..scheduler_config import NoiseSettings
from .base import Latents, Levels, Scheduler

_ORDER = 4


class ByLevel(Scheduler):
    """Levels and timesteps of this parametrisation.

    Attributes:
        sigmas: the level before each step and after the last.
        shown: the level of what the model is shown at each evaluation.
    """

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        times = self.spaced(whole=False)
        sigmas = self.level_at(times)
        if settings.log_linear:
            sigmas = np.geomspace(self.levels[-1], self.levels[0], steps + 1)
        if settings.placement != "uniform":
            sigmas = self.placed(sigmas)
            times = self.times_of(sigmas)
        last = 0.0 if settings.final_zero else float(self.levels[0])
        self.sigmas: list[float] = [*sigmas.tolist(), last]
        if settings.continuous:
            times = 0.25 * np.log(sigmas[:steps])
        self.shown, self.timesteps = self._evaluated(sigmas[:steps], times)
        top = max(self.sigmas)
        self.initial_scale = math.sqrt(top * top + 1) if settings.spacing == "leading" else top

    def _evaluated(self, sigmas: Levels, times: Levels) -> tuple[list[float], tuple[float, ...]]:
        """The level and the timestep of each evaluation."""
        return sigmas.tolist(), tuple(times.tolist())

    def scale_input(self, sample: Latents, index: int) -> Latents:
        return sample / math.sqrt(self.shown[index] ** 2 + 1)

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        return clean + noise * self.shown[index]

    def _clean(self, output: Latents, sample: Latents, index: int) -> Latents:
        sigma = self.shown[index]
        if self.settings.prediction == "epsilon":
            return self.clipped(sample - output * sigma)
        return self.clipped(sample / (sigma**2 + 1) - output * (sigma / math.sqrt(sigma**2 + 1)))


class Euler(ByLevel):
    """Euler's method."""

    name = "euler"

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        return sample + (sample - clean) * ((following - sigma) / sigma), clean


class LMS(ByLevel):
    """A linear multistep method of up to fourth order, whose coefficients are integrals over each step."""

    name = "lms"

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        self._slopes: list[Latents] = []

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        self._slopes = [(sample - clean) / self.sigmas[index], *self._slopes[: _ORDER - 1]]
        # diffusers counts the order from the schedule's begin, also where a picture starts within it.
        weights = self._weights(index, min(index + 1, _ORDER))
        moved = sum(weight * slope for weight, slope in zip(weights, self._slopes, strict=False))
        return sample + moved, clean

    def _weights(self, index: int, order: int) -> list[float]:
        """Integrals of Lagrange's polynomials through the last levels, from this level to the next."""
        now, following = self.sigmas[index : index + 2]
        known = [self.sigmas[index - back] for back in range(order)]
        nodes, shares = np.polynomial.legendre.leggauss(_ORDER)  # exact for what is integrated
        places = now + (nodes + 1) / 2 * (following - now)
        found = []
        for one in range(order):
            values = np.prod(
                [(places - known[k]) / (known[one] - known[k]) for k in range(order) if k != one], axis=0
            )
            found.append(float((shares * values).sum() / 2 * (following - now)))
        return found


class EulerAncestral(ByLevel):
    """Euler's method that steps further down and puts fresh noise back."""

    name = "euler_ancestral"
    stochastic = True

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        sigma = self.sigmas[index]
        down, up = _ancestral(sigma, self.sigmas[index + 1])
        moved = sample + (sample - clean) * ((down - sigma) / sigma)
        return (moved + noise * up if up else moved), clean


class Heun(ByLevel):
    """Heun's method: the slope is the mean of those at both ends of a step."""

    name = "heun"
    evaluations = 2

    def _evaluated(self, sigmas: Levels, times: Levels) -> tuple[list[float], tuple[float, ...]]:
        def twice(values: Levels) -> list[float]:
            return [float(values[0]), *np.repeat(values[1:], 2).tolist()]

        self._slope: Latents = None
        self._start: Latents = None
        return twice(sigmas), tuple(twice(times))

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        slope = (sample - clean) / self.shown[index]
        number = index // 2
        width = self.sigmas[number + 1] - self.sigmas[number]
        if self._slope is None:
            if self.sigmas[number + 1]:
                self._slope, self._start = slope, sample
            return sample + slope * width, clean
        moved = self._start + (self._slope + slope) * (width / 2)
        self._slope = self._start = None
        return moved, clean


class DPMSolverSDE(ByLevel):
    """Stochastic DPM-Solver++ with an evaluation in the middle of each step, in log level."""

    name = "dpmpp_sde"
    stochastic = True
    evaluations = 2

    def _evaluated(self, sigmas: Levels, times: Levels) -> tuple[list[float], tuple[float, ...]]:
        middles = np.sqrt(sigmas[:-1] * sigmas[1:])
        self._start: Latents = None
        self._first: Latents = None
        levels = _alternating(sigmas, middles)
        return levels, tuple(_alternating(times, self.times_of(middles)) if len(middles) else times.tolist())

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        number = index // 2
        sigma, following = self.sigmas[number], self.sigmas[number + 1]
        if not following:
            return clean, clean
        middle = math.sqrt(sigma * following)
        if self._start is None:
            self._start, self._first = sample, noise
            return self._moved(sample, clean, sigma, middle, noise), clean
        # The noise of the whole step is one walk with that of its first half.
        before, after = math.sqrt(sigma - middle), math.sqrt(middle - following)
        walked = (self._first * before + noise * after) / math.sqrt(sigma - following)
        moved = self._moved(self._start, clean, sigma, following, walked)
        self._start = self._first = None
        return moved, clean

    def _moved(self, sample: Latents, clean: Latents, sigma: float, to: float, noise: Latents) -> Latents:
        down, up = _ancestral(sigma, to)
        return sample * (down / sigma) + clean * (1 - down / sigma) + noise * up


def _ancestral(sigma: float, following: float) -> tuple[float, float]:
    """How far down to step, and how much noise to put back, to arrive at ``following``."""
    up = min(following, math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return math.sqrt(following**2 - up**2), up


def _alternating(firsts: Levels, seconds: Levels) -> list[float]:
    found = np.empty(len(firsts) + len(seconds))
    found[0::2], found[1::2] = firsts, seconds
    values: list[float] = found.tolist()
    return values


__all__ = ["LMS", "DPMSolverSDE", "Euler", "EulerAncestral", "Heun"]
