"""Samplers that go through the timesteps of the training.

Sources: Ho et al. 2020 (arXiv:2006.11239) for DDPM; Song et al. 2021 (arXiv:2010.02502) for DDIM; Luo et al.
2023 (arXiv:2310.04378) for latent consistency models; Zheng et al. 2024 (arXiv:2402.19159) for trajectory
consistency distillation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mlxengine.errors import InvalidParameterError

from ..scheduler_config import NoiseSettings
from .base import Latents, Levels, Scheduler

_DATA = 0.5
_GAMMA = 0.3


class ByTimestep(Scheduler):
    """The share of clean latents before each step, and its timestep."""

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        self._times: Levels = self._chosen()
        self.timesteps = tuple(float(time) for time in self._times)
        self._now = [float(self.alphas[time]) for time in self._times]

    def _chosen(self) -> Levels:
        raise NotImplementedError

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        return _mixed(clean, noise, self._now[index])

    def _clean(self, output: Latents, sample: Latents, index: int) -> Latents:
        now = self._now[index]
        return self.clipped(self.clean_from(output, sample, math.sqrt(now), math.sqrt(1 - now)))

    def _noise(self, output: Latents, sample: Latents, index: int) -> Latents:
        now = self._now[index]
        return self.noise_from(output, sample, math.sqrt(now), math.sqrt(1 - now))


class DDIM(ByTimestep):
    """DDIM with η = 0."""

    name = "ddim"

    def _chosen(self) -> Levels:
        times = self.spaced(whole=True).astype(int)
        # The next level is a fixed stride away, whatever the spacing: so it is defined in diffusers.
        before = times - self.settings.train_steps // self.steps
        last = 1.0 if self.settings.alpha_to_one else float(self.alphas[0])
        self._next = [float(self.alphas[time]) if time >= 0 else last for time in before]
        return times

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        return _mixed(clean, self._noise(output, sample, index), self._next[index]), clean


class DDPM(ByTimestep):
    """The chain of the training backwards, in fewer steps: each puts fresh noise back."""

    name = "ddpm"
    stochastic = True

    def _chosen(self) -> Levels:
        times = self.spaced(whole=True).astype(int)
        self._next = [*(float(self.alphas[time]) for time in times[1:]), 1.0]
        return times

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        now, following = self._now[index], self._next[index]
        clean = self._clean(output, sample, index)
        kept = now / following
        moved = clean * (math.sqrt(following) * (1 - kept) / (1 - now))
        moved = moved + sample * (math.sqrt(kept) * (1 - following) / (1 - now))
        variance = 1 - kept
        if not self.settings.large_variance:
            variance *= (1 - following) / (1 - now)
        return (moved + noise * math.sqrt(variance) if self.timesteps[index] > 0 else moved), clean


class Consistency(ByTimestep):
    """A model that was distilled on some of the timesteps, and runs on some of those."""

    stochastic = True

    def _chosen(self) -> Levels:
        original = self.settings.original_steps
        if self.steps > original:
            raise InvalidParameterError(
                f"steps={self.steps}: this model was distilled with {original} steps, and takes no more.",
                hint="Four to eight are usual.",
            )
        taught: Levels = (np.arange(original) + 1) * (self.settings.train_steps // original) - 1
        return taught[::-1][np.floor(np.linspace(0, original, self.steps, endpoint=False)).astype(int)]


class LCM(Consistency):
    """Latent consistency: straight to clean latents, and back to the next level with fresh noise."""

    name = "lcm"

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        scaled = self.timesteps[index] * self.settings.timestep_scaling
        skip = _DATA**2 / (scaled**2 + _DATA**2)
        out = scaled / math.sqrt(scaled**2 + _DATA**2)
        clean = self._clean(output, sample, index) * out + sample * skip
        if index + 1 == self.steps:
            return clean, clean
        return _mixed(clean, noise, self._now[index + 1]), clean


class TCD(Consistency):
    """Trajectory consistency with γ = 0.3: past the next level, and back to it with fresh noise."""

    name = "tcd"

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        now = self._now[index]
        clean = self.clean_from(output, sample, math.sqrt(now), math.sqrt(1 - now))
        following = int(self._times[index + 1]) if index + 1 < self.steps else 0
        past = float(self.alphas[math.floor(np.float32(1 - _GAMMA) * np.float32(following))])
        moved = _mixed(clean, self._noise(output, sample, index), past)
        if index + 1 < self.steps:
            moved = _mixed(moved, noise, float(self.alphas[following]) / past)
        return moved, clean


def _mixed(one: Latents, noise: Latents, share: float) -> Latents:
    """``one`` and noise, so that ``share`` of the variance is that of ``one``."""
    return one * math.sqrt(share) + noise * math.sqrt(1 - share)


__all__ = ["DDIM", "DDPM", "LCM", "TCD", "ByTimestep"]
