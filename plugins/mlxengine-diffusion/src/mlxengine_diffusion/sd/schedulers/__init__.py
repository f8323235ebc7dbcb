"""Samplers of variance-preserving diffusion models.

Coefficients are plain floats, computed once for all steps on the host. The conventions, including where
steps are placed and how each sampler scales its noise, are those of the samplers of the same names in
diffusers, so that a repository's ``scheduler_config.json`` means the same here. Sources of what they share:
Salimans and Ho 2022 (arXiv:2202.00512) for v-prediction; Lin et al. 2023 (arXiv:2305.08891), table 2, for
the spacings.
"""

from __future__ import annotations

from ..scheduler_config import NoiseSettings
from .base import Scheduler
from .by_level import LMS, DPMSolverSDE, Euler, EulerAncestral, Heun
from .by_timestep import DDIM, DDPM, LCM, TCD
from .multistep import DEIS, DPMSolver2M, DPMSolver2MSDE, DPMSolver2S, UniPC
from .pndm import PNDM

SCHEDULERS: dict[str, type[Scheduler]] = {
    item.name: item
    for item in (
        Euler,
        EulerAncestral,
        Heun,
        DDIM,
        DPMSolver2M,
        DPMSolver2MSDE,
        DPMSolver2S,
        DPMSolverSDE,
        DEIS,
        UniPC,
        LCM,
        TCD,
        PNDM,
        LMS,
        DDPM,
    )
}


def scheduler(name: str, settings: NoiseSettings, steps: int, placement: str | None = None) -> Scheduler:
    """The sampler of that name for one picture.

    Raises:
        InvalidParameterError: there is no such sampler or placement, the repository's settings do not go
            with it, or the model has fewer noise levels than ``steps``.
    """
    seen = settings.seen_by(name, placement)
    return SCHEDULERS[name](seen, steps)


__all__ = ["SCHEDULERS", "Scheduler", "scheduler"]
