"""What all samplers have in common."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from mlxengine.errors import InvalidParameterError

from ..scheduler_config import NoiseSettings
from .levels import placed

Latents = Any
"""An array of shape (batch, height, width, channels), float32."""
Levels = Any
"""A numpy array of noise levels or timesteps, float64."""


class Scheduler:
    """One picture's way from noise to latents; used for one picture only.

    Attributes:
        name: the name under which a caller asks for it.
        stochastic: whether a step takes fresh noise.
        evaluations: how often a step asks the model (the last one may do with fewer).
        timesteps: what the model is told at each evaluation.
        initial_scale: standard deviation of the noise that the first step expects.
    """

    name: ClassVar[str]
    stochastic: ClassVar[bool] = False
    evaluations: ClassVar[int] = 1
    timesteps: tuple[float, ...]
    initial_scale: float = 1.0

    def __init__(self, settings: NoiseSettings, steps: int) -> None:
        if not 1 <= steps < settings.train_steps:
            raise InvalidParameterError(
                f"steps={steps} must be from 1 to {settings.train_steps - 1} for this model."
            )
        self.settings = settings
        self.steps = steps
        self.alphas = settings.alphas()
        self.levels = np.sqrt((1 - self.alphas) / self.alphas)

    def scale_input(self, sample: Latents, index: int) -> Latents:
        """What the model is shown at evaluation ``index``."""
        return sample

    def step(self, output: Latents, sample: Latents, index: int, noise: Latents = None) -> tuple[Any, Any]:
        """Go from evaluation ``index`` to the next.

        Returns:
            The next sample, and the clean latents that the model now believes in.
        """
        raise NotImplementedError

    def finished(self, index: int) -> int:
        """How many steps are done after evaluation ``index``."""
        return self.steps if index + 1 == len(self.timesteps) else (index + 1) // self.evaluations

    def add_noise(self, clean: Latents, noise: Latents, index: int) -> Latents:
        """Clean latents at the noise level of evaluation ``index`` (image-to-image starts here)."""
        raise NotImplementedError

    def spaced(self, *, whole: bool, extra: int = 0, spacing: str | None = None) -> Levels:
        """The timesteps of the spacing, from the noisiest on, shape (steps,)."""
        train, steps, spacing = self.settings.train_steps, self.steps, spacing or self.settings.spacing
        if spacing == "linspace":
            found = np.linspace(0, train - 1, steps + extra)[::-1][:steps]
            return np.round(found) if whole else found.astype(np.float32).astype(np.float64)
        if spacing == "leading":
            ratio = train // (steps + extra)
            return (np.arange(0, steps + extra) * ratio)[::-1][:steps] + float(self.settings.steps_offset)
        return np.asarray(np.round(train - np.arange(steps) * (train / steps)) - 1)

    def placed(self, levels: Levels) -> Levels:
        """Levels of the settings' placement over the range of ``levels``, or over their own range."""
        low, high = self.settings.lowest, self.settings.highest
        return placed(
            self.settings.placement,
            self.steps,
            float(levels.min()) if low is None else low,
            float(levels.max()) if high is None else high,
        )

    def level_at(self, times: Levels) -> Levels:
        """The noise levels of timesteps, which may lie between those of the training."""
        return np.interp(times, np.arange(len(self.levels)), self.levels)

    def times_of(self, levels: Levels) -> Levels:
        """The timesteps of noise levels."""
        return np.interp(np.log(levels), np.log(self.levels), np.arange(len(self.levels)))

    def clipped(self, clean: Latents) -> Latents:
        """Clean latents, cut where the settings say so."""
        if self.settings.clip is None:
            return clean
        import mlx.core as mx

        return mx.clip(clean, -self.settings.clip, self.settings.clip)

    def clean_from(self, output: Latents, sample: Latents, alpha: float, sigma: float) -> Latents:
        """Clean latents of ``sample`` = alpha * clean + sigma * noise, from what the model says of it."""
        if self.settings.prediction == "epsilon":
            return (sample - output * sigma) / alpha
        return sample * alpha - output * sigma

    def noise_from(self, output: Latents, sample: Latents, alpha: float, sigma: float) -> Latents:
        """The noise of the same sample."""
        return output if self.settings.prediction == "epsilon" else output * alpha + sample * sigma


def alpha_and_sigma(level: float) -> tuple[float, float]:
    """The shares of clean latents and of noise at a level, their squares adding up to 1."""
    alpha = 1 / math.sqrt(level**2 + 1)
    return alpha, level * alpha


__all__ = ["Latents", "Levels", "Scheduler", "alpha_and_sigma"]
