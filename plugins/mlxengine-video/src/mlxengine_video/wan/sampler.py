"""The noise levels of flow matching, and the library's UniPC along them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_video.models.wan.scheduler import FlowUniPCScheduler

_NOT_QUITE = 1e-6


def levels(config: Mapping[str, Any], steps: int) -> tuple[list[float], list[int]]:
    """The noise level before each step and after the last, and the timestep that the transformer is told.

    Args:
        config: ``scheduler_config.json``, as `shape.read_documents` gives it.
    """
    train, shift = config["num_train_timesteps"], config["flow_shift"]
    even = np.linspace(1, 1 / train, steps + 1)[:-1]
    found = shift * even / (1 + (shift - 1) * even)
    # Pure noise has no signal to take the logarithm of.
    found[0] = min(found[0], 1 - _NOT_QUITE)
    return [*np.append(found, 0).astype(np.float32).tolist()], (found * train).astype(np.int64).tolist()


class Solver(FlowUniPCScheduler):  # type: ignore[misc]
    """UniPC (Zhao et al. 2023) over one video's levels.

    The library's own levels go from 0.999 down to 0 in even steps before they are shifted. Those of
    diffusers, which published settings are for, go from 1 towards 0.001, and end at 0 instead.
    """

    def __init__(self, config: Mapping[str, Any], steps: int) -> None:
        super().__init__(
            num_train_timesteps=config["num_train_timesteps"],
            solver_order=config["solver_order"],
            disable_corrector=list(config["disable_corrector"]),
        )
        self.set_timesteps(steps, shift=config["flow_shift"])
        self._sigmas_float, self.told = levels(config, steps)

    def next(self, velocity: mx.array, latents: mx.array) -> mx.array:
        """The latents after one more step, evaluated."""
        found: mx.array = self.step(velocity, None, latents)
        mx.eval(found)
        return found


__all__ = ["Solver", "levels"]
