"""Samplers of variance-preserving diffusion models: Euler, ancestral Euler, DDIM and DPM-Solver++ (2M).

Coefficients are plain floats, computed once for all steps on the host; latents may be any array that
takes arithmetic with floats (mlx, numpy). The conventions, including where steps are placed and how
each sampler scales its noise, are those of the samplers of the same names in diffusers, so that a
repository's ``scheduler_config.json`` means the same here.

Sources: Karras et al. 2022 (arXiv:2206.00364) for Euler; Song et al. 2021 (arXiv:2010.02502) for DDIM;
Lu et al. 2022 (arXiv:2211.01095) for DPM-Solver++; Salimans and Ho 2022 (arXiv:2202.00512) for
v-prediction; Lin et al. 2023 (arXiv:2305.08891), table 2, for the spacings.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from mlxengine.errors import InvalidParameterError

from .noise import NoiseSettings

Latents = Any
"""An array of shape (batch, height, width, channels), float32."""
_Levels = Any


class Scheduler:
    """One picture's way from noise to latents; used for one picture only.

    Attributes:
        name: the name under which a caller asks for it.
        stochastic: whether a step takes fresh noise.
        timesteps: what the model is told at each step.
        initial_scale: standard deviation of the noise that the first step expects.
    """

    name: ClassVar[str]
    stochastic: ClassVar[bool] = False
    default_spacing: ClassVar[str] = "linspace"
    timesteps: tuple[float, ...]
    initial_scale: float = 1.0

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        if not 1 <= steps < settings.train_steps:
            raise InvalidParameterError(
                f"steps={steps} must be from 1 to {settings.train_steps - 1} for this model."
            )
        self.settings = settings
        self.steps = steps
        self.spacing = settings.spacing or self.default_spacing
        self.alphas = settings.alphas()
        self.levels = np.sqrt((1 - self.alphas) / self.alphas)

    def scale_input(self, sample: Latents, index: int) -> Latents:
        """What the model is shown at step ``index``."""
        return sample

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        """Go from step ``index`` to the next.

        Returns:
            The next sample, and the clean latents that the model now believes in.
        """
        raise NotImplementedError

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        """Clean latents at the noise level of step ``index`` (image-to-image starts here)."""
        raise NotImplementedError

    def _spaced(self, *, whole: bool, extra: int = 0) -> _Levels:
        train, steps = self.settings.train_steps, self.steps
        if self.spacing == "linspace":
            found = np.linspace(0, train - 1, steps + extra)[::-1][:steps]
            return np.round(found) if whole else found.astype(np.float32).astype(np.float64)
        if self.spacing == "leading":
            ratio = train // (steps + extra)
            return (np.arange(0, steps + extra) * ratio)[::-1][:steps] + float(self.settings.steps_offset)
        return np.asarray(np.round(train - np.arange(steps) * (train / steps)) - 1)

    def _karras(self, levels: _Levels, rho: float = 7.0) -> _Levels:
        low, high = levels.min() ** (1 / rho), levels.max() ** (1 / rho)
        return np.asarray((high + np.linspace(0, 1, self.steps) * (low - high)) ** rho)

    def _times_of(self, levels: _Levels) -> _Levels:
        return np.interp(np.log(levels), np.log(self.levels), np.arange(len(self.levels)))


class Euler(Scheduler):
    """Euler's method in the parametrisation of Karras et al.: the sample is clean + level * noise."""

    name = "euler"

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        times = self._spaced(whole=False)
        sigmas: _Levels = np.interp(times, np.arange(len(self.levels)), self.levels)
        if settings.karras and not self.stochastic:
            sigmas = self._karras(sigmas)
            times = self._times_of(sigmas)
        self.timesteps = tuple(times.tolist())
        self.sigmas: list[float] = [*sigmas.tolist(), 0.0]
        top = max(self.sigmas)
        self.initial_scale = math.sqrt(top * top + 1) if self.spacing == "leading" else top

    def scale_input(self, sample: Latents, index: int) -> Latents:
        return sample / math.sqrt(self.sigmas[index] ** 2 + 1)

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        return clean + noise * self.sigmas[index]

    def _clean(self, output: Latents, sample: Latents, index: int) -> Latents:
        sigma = self.sigmas[index]
        if self.settings.prediction == "epsilon":
            return sample - output * sigma
        return sample / (sigma**2 + 1) - output * (sigma / math.sqrt(sigma**2 + 1))

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        return sample + (sample - clean) * ((following - sigma) / sigma), clean


class EulerAncestral(Euler):
    """Euler's method that steps further down and puts fresh noise back."""

    name = "euler_ancestral"
    stochastic = True

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        clean = self._clean(output, sample, index)
        sigma, following = self.sigmas[index], self.sigmas[index + 1]
        up = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
        down = math.sqrt(following**2 - up**2)
        moved = sample + (sample - clean) * ((down - sigma) / sigma)
        return (moved + noise * up if up else moved), clean


class DDIM(Scheduler):
    """DDIM with η = 0."""

    name = "ddim"
    default_spacing = "leading"

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        times: _Levels = self._spaced(whole=True).astype(int)
        self.timesteps = tuple(float(time) for time in times)
        # The next level is a fixed stride away, whatever the spacing: so it is defined in diffusers.
        before: _Levels = times - settings.train_steps // steps
        last = 1.0 if settings.alpha_to_one else float(self.alphas[0])
        self._now = [float(self.alphas[time]) for time in times]
        self._next = [float(self.alphas[time]) if time >= 0 else last for time in before]

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        alpha = self._now[index]
        return clean * math.sqrt(alpha) + noise * math.sqrt(1 - alpha)

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        now, following = self._now[index], self._next[index]
        root, rest = math.sqrt(now), math.sqrt(1 - now)
        if self.settings.prediction == "epsilon":
            clean, error = (sample - output * rest) / root, output
        else:
            clean, error = sample * root - output * rest, output * root + sample * rest
        return clean * math.sqrt(following) + error * math.sqrt(1 - following), clean


class DPMSolver2M(Scheduler):
    """DPM-Solver++ of second order with two evaluations in memory (midpoint)."""

    name = "dpmpp_2m"

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        super().__init__(settings, steps)
        times = self._spaced(whole=True, extra=1)
        sigmas: _Levels = np.interp(times, np.arange(len(self.levels)), self.levels)
        if settings.karras:
            sigmas = self._karras(self.levels)
            times = np.round(self._times_of(sigmas))
        self.timesteps = tuple(times.tolist())
        self.sigmas: list[float] = [*sigmas.tolist(), 0.0]
        self._before: Latents = None

    def _pair(self, index: int) -> tuple[float, float]:
        alpha = 1 / math.sqrt(self.sigmas[index] ** 2 + 1)
        return alpha, self.sigmas[index] * alpha

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        alpha, sigma = self._pair(index)
        return clean * alpha + noise * sigma

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        alpha, sigma = self._pair(index)
        if self.settings.prediction == "epsilon":
            clean = (sample - output * sigma) / alpha
        else:
            clean = sample * alpha - output * sigma
        before, self._before = self._before, clean
        last = index + 1 == len(self.timesteps)
        if last:
            return clean, clean
        alpha_next, sigma_next = self._pair(index + 1)
        h = math.log(alpha_next / sigma_next) - math.log(alpha / sigma)
        drift = alpha_next * -math.expm1(-h)
        moved = sample * (sigma_next / sigma) + clean * drift
        if before is not None:
            alpha_old, sigma_old = self._pair(index - 1)
            ratio = h / (math.log(alpha / sigma) - math.log(alpha_old / sigma_old))
            moved = moved + (clean - before) * (0.5 * drift * ratio)
        return moved, clean


SCHEDULERS: dict[str, type[Scheduler]] = {
    item.name: item for item in (Euler, EulerAncestral, DDIM, DPMSolver2M)
}


def scheduler(name: str, settings: NoiseSettings, steps: int) -> Scheduler:
    """The sampler of that name for one picture.

    Raises:
        InvalidParameterError: there is no such sampler, or the model has fewer noise levels than ``steps``.
    """
    if name not in SCHEDULERS:
        raise InvalidParameterError(
            f"scheduler={name!r} is not known.", hint=f"Use one of {', '.join(SCHEDULERS)}."
        )
    return SCHEDULERS[name](settings, steps)


__all__ = ["SCHEDULERS", "NoiseSettings", "Scheduler", "scheduler"]
