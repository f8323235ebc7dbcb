"""What each of diffusers' scheduler classes can be told, and which of it is followed here. Pure.

A repository's ``scheduler_config.json`` names a class and some of its settings. Whether a setting is
followed or refused is told from the class's own list: `CLASSES` has, for each class, every argument of its
constructor with the default that it has there (source: diffusers 0.42.1, ``diffusers/schedulers``), and
the values that the sampler here follows. What a class does not list, diffusers ignores, and so do we.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

Settings = Mapping[str, Any]


class _Any:
    """Stands for every value: one that is followed, or that another setting makes meaningless."""

    def __contains__(self, value: object) -> bool:
        return True


_ANY = _Any()
Followed = Mapping[str, "_Any | tuple[Any, ...]"]

_NOISE: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_LATENT_NOISE: Settings = {**_NOISE, "beta_start": 0.00085, "beta_end": 0.012}
_SPACED: Settings = {"timestep_spacing": "linspace", "steps_offset": 0}
_PLACED: Settings = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_RANGE: Settings = {"sigma_min": None, "sigma_max": None}
_CLIPPED: Settings = {"clip_sample": False, "clip_sample_range": 1.0}
_THRESHOLD: Settings = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_FLOW: Settings = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_ZERO_SNR: Settings = {"rescale_betas_zero_snr": False}
_SOLVER: Settings = {"solver_order": 2, **_THRESHOLD, **_PLACED, **_FLOW}
_DPM: Settings = {
    **_SOLVER,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
}
_CONSISTENCY: Settings = {
    **_LATENT_NOISE,
    **_CLIPPED,
    **_THRESHOLD,
    **_ZERO_SNR,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "leading",
    "timestep_scaling": 10.0,
}
_FLAG = (False, True, None)

# Values that are followed, whatever the class. Ratios and ranges say something only where the flag beside
# them is set, and that flag is checked for itself.
_EVERYWHERE: Followed = {
    "num_train_timesteps": _ANY,
    "beta_start": _ANY,
    "beta_end": _ANY,
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": _ANY,
    "dynamic_thresholding_ratio": _ANY,
    "sample_max_value": _ANY,
    "clip_sample_range": _ANY,
    "flow_shift": _ANY,
    "time_shift_type": _ANY,
    **dict.fromkeys(_PLACED, _FLAG),
}
_FINAL: Followed = {"final_sigmas_type": ("zero", "sigma_min")}
_LOW_FINAL: Followed = {"lower_order_final": _FLAG}
# The names that diffusers takes for one another when one class is given another's settings.
_MULTISTEP_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")


@frozen(kw_only=True)
class SchedulerClass:
    """One of diffusers' classes.

    Args:
        sampler: our name of what does the same.
        settings: the class's own list of settings, with its defaults.
        followed: the values other than the default that are followed.
    """

    sampler: str
    settings: Settings
    followed: Followed = field(factory=dict)

    def effective(self, config: Settings) -> dict[str, Any]:
        """The class's settings as a configuration has them, with the class's defaults for the others."""
        return {name: config.get(name, default) for name, default in self.settings.items()}

    def refused(self, config: Settings) -> list[str]:
        """The settings of a configuration that are not followed, as ``name=value``."""
        return [
            f"{name}={value!r}"
            for name, value in self.effective(config).items()
            if not self._follows(name, value)
        ]

    def _follows(self, name: str, value: Any) -> bool:
        if name in self.followed:
            return value in self.followed[name]
        return value in _EVERYWHERE.get(name, ()) or value == self.settings[name]


CLASSES: Mapping[str, SchedulerClass] = {
    "EulerDiscreteScheduler": SchedulerClass(
        sampler="euler",
        settings={
            **_NOISE,
            **_SPACED,
            **_PLACED,
            **_RANGE,
            **_ZERO_SNR,
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "final_sigmas_type": "zero",
        },
        followed={
            **_FINAL,
            **dict.fromkeys(_RANGE, _ANY),
            "rescale_betas_zero_snr": _FLAG,
            "interpolation_type": ("linear", "log_linear"),
            "timestep_type": ("discrete", "continuous"),
        },
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass(
        sampler="euler_ancestral",
        settings={**_NOISE, **_SPACED, **_ZERO_SNR},
        followed={"rescale_betas_zero_snr": _FLAG},
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        sampler="heun",
        settings={**_LATENT_NOISE, **_SPACED, **_PLACED, **_CLIPPED},
        followed={"clip_sample": _FLAG},
    ),
    "DPMSolverSDEScheduler": SchedulerClass(
        sampler="dpmpp_sde", settings={**_LATENT_NOISE, **_SPACED, **_PLACED, "noise_sampler_seed": None}
    ),
    "DDIMScheduler": SchedulerClass(
        sampler="ddim",
        settings={
            **_NOISE,
            **_SPACED,
            **_CLIPPED,
            **_THRESHOLD,
            **_ZERO_SNR,
            "clip_sample": True,
            "set_alpha_to_one": True,
            "timestep_spacing": "leading",
        },
        followed={"clip_sample": _FLAG, "set_alpha_to_one": _FLAG},
    ),
    "LCMScheduler": SchedulerClass(
        sampler="lcm",
        settings=_CONSISTENCY,
        followed={
            "clip_sample": _FLAG,
            "set_alpha_to_one": _ANY,
            "original_inference_steps": _ANY,
            "timestep_scaling": _ANY,
        },
    ),
    "TCDScheduler": SchedulerClass(
        sampler="tcd",
        settings=_CONSISTENCY,
        # Strategic sampling reads neither the clipping nor the scaling.
        followed={
            "clip_sample": _ANY,
            "set_alpha_to_one": _ANY,
            "original_inference_steps": _ANY,
            "timestep_scaling": _ANY,
        },
    ),
    "DPMSolverMultistepScheduler": SchedulerClass(
        sampler="dpmpp_2m",
        settings={
            **_NOISE,
            **_SPACED,
            **_DPM,
            **_ZERO_SNR,
            "lower_order_final": True,
            "euler_at_final": False,
            "use_lu_lambdas": False,
        },
        followed={
            **_FINAL,
            **_LOW_FINAL,
            "solver_order": (1, 2, 3),
            "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),
            "solver_type": _MULTISTEP_TYPES,
            "euler_at_final": _FLAG,
            "rescale_betas_zero_snr": _FLAG,
        },
    ),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        sampler="dpmpp_2s",
        settings={**_NOISE, **_DPM, "lower_order_final": False},
        followed={
            **_FINAL,
            **_LOW_FINAL,
            "solver_order": (1, 2),
            "algorithm_type": ("dpmsolver++", "deis"),
            "solver_type": _MULTISTEP_TYPES,
        },
    ),
    "DEISMultistepScheduler": SchedulerClass(
        sampler="deis",
        settings={
            **_NOISE,
            **_SPACED,
            **_SOLVER,
            "algorithm_type": "deis",
            "solver_type": "logrho",
            "lower_order_final": True,
        },
        followed={
            **_LOW_FINAL,
            "solver_order": (1, 2),
            "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
            "solver_type": _MULTISTEP_TYPES,
        },
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        sampler="unipc",
        settings={
            **_NOISE,
            **_SPACED,
            **_SOLVER,
            **_RANGE,
            **_ZERO_SNR,
            "predict_x0": True,
            "solver_type": "bh2",
            "lower_order_final": True,
            "disable_corrector": [],
            "solver_p": None,
            "final_sigmas_type": "zero",
            "shift_terminal": None,
        },
        followed={
            **_FINAL,
            **_LOW_FINAL,
            **dict.fromkeys(_RANGE, _ANY),
            "solver_order": (1, 2, 3),
            "solver_type": _MULTISTEP_TYPES,
            "disable_corrector": _ANY,
            "rescale_betas_zero_snr": _FLAG,
        },
    ),
    "PNDMScheduler": SchedulerClass(
        sampler="pndm",
        settings={
            **_NOISE,
            **_SPACED,
            "skip_prk_steps": False,
            "set_alpha_to_one": False,
            "timestep_spacing": "leading",
        },
        followed={"skip_prk_steps": _FLAG, "set_alpha_to_one": _FLAG},
    ),
    "LMSDiscreteScheduler": SchedulerClass(sampler="lms", settings={**_NOISE, **_SPACED, **_PLACED}),
    "DDPMScheduler": SchedulerClass(
        sampler="ddpm",
        settings={
            **_NOISE,
            **_SPACED,
            **_CLIPPED,
            **_THRESHOLD,
            **_ZERO_SNR,
            "clip_sample": True,
            "variance_type": "fixed_small",
            "timestep_spacing": "leading",
        },
        followed={
            "clip_sample": _FLAG,
            "variance_type": ("fixed_small", "fixed_large"),
            "rescale_betas_zero_snr": _FLAG,
        },
    ),
}


def class_of(sampler: str) -> tuple[str, SchedulerClass]:
    """The class that a sampler of ours does the same as, with its name."""
    name = {"dpmpp_2m_sde": "dpmpp_2m"}.get(sampler, sampler)
    return next((key, item) for key, item in CLASSES.items() if item.sampler == name)


def samplers() -> Iterable[str]:
    """Our names of all samplers."""
    return (*(item.sampler for item in CLASSES.values()), "dpmpp_2m_sde")


__all__ = ["CLASSES", "SchedulerClass", "class_of", "samplers"]
