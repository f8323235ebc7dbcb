"""Pseudo numerical methods on the timesteps of the training: PLMS, after Runge-Kutta's method or without.

Source: Liu et al. 2022 (arXiv:2202.09778), equations 9, 12 and 13.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mlxengine.errors import InvalidParameterError

from .base import Latents, Levels
from .by_timestep import ByTimestep

_ORDER = 4
# Adams and Bashforth's formulas of the first four orders, the newest output first.
_FORMULAS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDM(ByTimestep):
    """A linear multistep method on what the model says, with a transfer from level to level of its own.

    The first step is done twice, with the mean of both outputs; or the first three are Runge-Kutta's, with
    four evaluations each.
    """

    name = "pndm"

    def _chosen(self) -> Levels:
        times = self.spaced(whole=True).astype(int)
        self._stride = self.settings.train_steps // self.steps
        self._last = 1.0 if self.settings.alpha_to_one else float(self.alphas[0])
        self._outputs: list[Latents] = []
        self._count = 0
        self._start: Latents = None
        self._sum: Latents = 0
        self._firsts: Levels = times[:0]
        if not self.settings.runge_kutta:
            return np.concatenate([times[:1], times[1:2], times[1:]])
        if self.steps < _ORDER:
            raise InvalidParameterError(
                f"steps={self.steps}: this model's sampler begins with three steps of another method.",
                hint=f"Use {_ORDER} at least, or another scheduler.",
            )
        halves = np.repeat(times[_ORDER - 1 :: -1], 2) + np.tile([0, self._stride // 2], _ORDER)
        self._firsts = np.repeat(halves[:-1], 2)[1:-1][::-1]
        return np.concatenate([self._firsts, times[_ORDER - 1 :]])

    def finished(self, index: int) -> int:
        if index < len(self._firsts):
            return (index + 1) // _ORDER
        return self.steps - (len(self.timesteps) - 1 - index)

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        time = int(self._times[index])
        walk = self._first if self._count < len(self._firsts) else self._further
        moved = walk(output, sample, time)
        self._count += 1
        return moved, clean

    def _first(self, output: Latents, sample: Latents, time: int) -> Latents:
        """One of Runge-Kutta's four evaluations: the ends and, twice, the middle of a step."""
        phase = self._count % _ORDER
        if phase == 0:
            self._outputs.append(output)
            self._start, self._sum = sample, 0
        self._sum = self._sum + output * _RUNGE_KUTTA[phase]
        to = time if self._count % 2 else time - self._stride // 2
        begun = int(self._firsts[self._count - phase])
        return self._transferred(self._start, begun, to, self._sum if phase == 3 else output)

    def _further(self, output: Latents, sample: Latents, time: int) -> Latents:
        to = time - self._stride
        if self._count == 1:  # the first step again
            time, to = time + self._stride, time
            mixed = (output + self._outputs[-1]) / 2
            return self._transferred(self._start, time, to, mixed)
        if self._count == 0:
            self._start = sample
        self._outputs = [*self._outputs[1 - _ORDER :], output]
        weights = _FORMULAS[len(self._outputs) - 1]
        mixed = sum(weight * known for weight, known in zip(weights, reversed(self._outputs), strict=True))
        return self._transferred(sample, time, to, mixed)

    def _transferred(self, sample: Latents, time: int, to: int, output: Latents) -> Latents:
        """A sample at one timestep brought to another."""
        now = float(self.alphas[time])
        following = float(self.alphas[to]) if to >= 0 else self._last
        noise = self.noise_from(output, sample, math.sqrt(now), math.sqrt(1 - now))
        below = now * math.sqrt(1 - following) + math.sqrt(now * (1 - now) * following)
        return sample * math.sqrt(following / now) - noise * ((following - now) / below)


__all__ = ["PNDM"]
