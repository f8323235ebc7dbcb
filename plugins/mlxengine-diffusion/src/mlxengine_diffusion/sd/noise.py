"""What a repository says about the noise that its model was trained with. Pure, and without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen
from mlxengine.errors import UnsupportedArchitectureError

_CLASSES = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
# PNDM (Stable Diffusion 1's own), LMS, UniPC and others solve the same equation; this takes their place.
STAND_IN = "dpmpp_2m"
_OTHER_SOLVERS = frozenset(
    f"{name}Scheduler"
    for name in ("PNDM", "LMSDiscrete", "UniPCMultistep", "HeunDiscrete", "DDPM", "DEISMultistep", "LCM")
)
_UNUSUAL = ("rescale_betas_zero_snr", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_MOST_STEPS = 100_000


@frozen(kw_only=True)
class NoiseSettings:
    """What ``scheduler_config.json`` says about the noise that a model was trained with.

    Args:
        scheduler: our name of the sampler that the repository asks for, or that stands in for it.
        asked: the class name that the repository has.
        train_steps: number of noise levels in training.
        betas: ``"linear"`` or ``"scaled_linear"``, from ``beta_start`` to ``beta_end``.
        prediction: ``"epsilon"`` or ``"v_prediction"``.
        spacing: ``"leading"``, ``"linspace"``, ``"trailing"``; ``None`` leaves it to the sampler.
        steps_offset: added to the timesteps of the leading spacing.
        alpha_to_one: whether DDIM's last step ends without noise.
        karras: whether Euler and DPM-Solver++ place their noise levels as Karras et al. do.
    """

    scheduler: str = "euler"
    asked: str = ""
    train_steps: int = 1000
    betas: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "epsilon"
    spacing: str | None = None
    steps_offset: int = 0
    alpha_to_one: bool = True
    karras: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> NoiseSettings:
        """Read a decoded ``scheduler_config.json``.

        Raises:
            UnsupportedArchitectureError: it asks for something that no sampler here does.
        """
        asked = str(config.get("_class_name", ""))
        found = cls(
            scheduler=_CLASSES.get(asked, STAND_IN),
            asked=asked,
            train_steps=int(config.get("num_train_timesteps", 1000)),
            betas=str(config.get("beta_schedule", "linear")),
            beta_start=float(config.get("beta_start", 0.0001)),
            beta_end=float(config.get("beta_end", 0.02)),
            prediction=str(config.get("prediction_type", "epsilon")),
            spacing=config.get("timestep_spacing"),
            steps_offset=int(config.get("steps_offset", 0)),
            alpha_to_one=bool(config.get("set_alpha_to_one", True)),
            karras=bool(config.get("use_karras_sigmas", False)),
        )
        wrong = [f"{key}={config[key]!r}" for key in _UNUSUAL if config.get(key)]
        wrong += ["trained_betas"] if config.get("trained_betas") is not None else []
        if asked not in _CLASSES and asked not in _OTHER_SOLVERS:
            wrong.append(f"_class_name={asked!r}")
        if not 0 < found.beta_start <= found.beta_end < 1:
            wrong.append(f"noise from {found.beta_start} to {found.beta_end}")
        if not 0 <= found.steps_offset < found.train_steps <= _MOST_STEPS:
            wrong.append(f"num_train_timesteps={found.train_steps}, steps_offset={found.steps_offset}")
        if found.betas not in ("linear", "scaled_linear"):
            wrong.append(f"beta_schedule={found.betas!r}")
        if found.prediction not in ("epsilon", "v_prediction"):
            wrong.append(f"prediction_type={found.prediction!r}")
        if found.spacing not in (None, "leading", "linspace", "trailing"):
            wrong.append(f"timestep_spacing={found.spacing!r}")
        if config.get("final_sigmas_type", "zero") != "zero":
            wrong.append(f"final_sigmas_type={config['final_sigmas_type']!r}")
        if wrong:
            raise UnsupportedArchitectureError(
                f"The model's scheduler has settings that are not implemented: {', '.join(wrong)}.",
                hint=f"Samplers here: {', '.join(sorted(_CLASSES.values()))}.",
            )
        return found

    def alphas(self) -> Any:
        """The product of 1 - β up to each noise level, shape (train_steps,), float64."""
        import numpy as np

        if self.betas == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps) ** 2
        return np.cumprod(1.0 - betas)
