"""A repository's ``scheduler_config.json`` as a sampler reads it. Pure, and without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen
from mlxengine.errors import InvalidParameterError, UnsupportedArchitectureError

from .scheduler_classes import CLASSES, class_of, samplers

_MOST_STEPS = 100_000
_PLACEMENTS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
PLACEMENTS = ("uniform", *_PLACEMENTS.values())
"""How noise levels can be placed: as the timesteps are spaced, or by a formula of their own."""


@frozen(kw_only=True)
class NoiseSettings:
    """What a sampler is told about the noise that a model was trained with, and about its own ways.

    Args:
        sampler: our name of the sampler.
        asked: the class name that the repository has.
        config: the repository's settings as they stand in the file.
        train_steps: number of noise levels in training.
        betas: ``"linear"`` or ``"scaled_linear"``, from ``beta_start`` to ``beta_end``.
        zero_snr: whether the last level is made pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
        prediction: ``"epsilon"`` or ``"v_prediction"``.
        spacing: ``"leading"``, ``"linspace"`` or ``"trailing"``.
        steps_offset: added to the timesteps of the leading spacing.
        placement: one of `PLACEMENTS`.
        lowest, highest: the range that a placement covers; ``None`` leaves it to the levels.
        log_linear: levels are evenly spaced in their logarithm instead of looked up by timestep.
        continuous: the model is told a function of the level instead of a timestep.
        final_zero: whether the last step ends without noise, rather than at the lowest level.
        alpha_to_one: the same for DDIM.
        clip: clean latents are cut at plus and minus this.
        order: order of a multistep solver, 1 to 3.
        sde: whether DPM-Solver++ takes fresh noise.
        heun: DPM-Solver++'s second formula of second order.
        bh1: UniPC's first function B(h).
        lower_order_final: whether the last steps of few are of lower order.
        euler_at_final: whether the last step always is.
        uncorrected: steps after which UniPC does not correct.
        original_steps: steps that a consistency model was distilled with.
        timestep_scaling: of a consistency model's boundary condition.
        runge_kutta: whether PNDM begins with that method.
        large_variance: whether DDPM's noise has the variance of the step itself.
    """

    sampler: str = "euler"
    asked: str = ""
    config: Mapping[str, Any] = field(factory=dict)
    train_steps: int = 1000
    betas: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_snr: bool = False
    prediction: str = "epsilon"
    spacing: str = "linspace"
    steps_offset: int = 0
    placement: str = "uniform"
    lowest: float | None = None
    highest: float | None = None
    log_linear: bool = False
    continuous: bool = False
    final_zero: bool = True
    alpha_to_one: bool = True
    clip: float | None = None
    order: int = 2
    sde: bool = False
    heun: bool = False
    bh1: bool = False
    lower_order_final: bool = True
    euler_at_final: bool = False
    uncorrected: tuple[int, ...] = ()
    original_steps: int = 50
    timestep_scaling: float = 10.0
    runge_kutta: bool = False
    large_variance: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> NoiseSettings:
        """Read a decoded ``scheduler_config.json`` for the class that it names.

        Raises:
            UnsupportedArchitectureError: it asks for something that no sampler here does.
        """
        asked = str(config.get("_class_name", ""))
        known = CLASSES.get(asked)
        if known is None:
            raise _refusal(asked, [f"_class_name={asked!r}"])
        made = _read(config, asked, class_of(known.sampler)[0], known.sampler)
        wrong = known.refused(config) + _impossible(made)
        if wrong:
            raise _refusal(asked, wrong)
        return evolve(made, sampler="dpmpp_2m_sde") if made.sde else made

    @property
    def distilled(self) -> bool:
        """Whether the repository's sampler is one for models that were distilled to few steps."""
        return self.sampler in ("lcm", "tcd")

    def seen_by(self, sampler: str, placement: str | None = None) -> NoiseSettings:
        """The same repository's settings for another sampler, as ``from_config`` hands them on in diffusers.

        Two things differ where the repository does not say them: clean latents are not cut, and PNDM does not
        begin with Runge-Kutta's method. These defaults of diffusers are for models of pixels.

        Raises:
            InvalidParameterError: there is no such sampler or placement, or the repository's settings do not
                go with it.
        """
        made = self
        if sampler != self.sampler:
            if sampler not in samplers():
                raise InvalidParameterError(
                    f"scheduler={sampler!r} is not known.", hint=f"Use one of {', '.join(samplers())}."
                )
            name, known = class_of(sampler)
            given = {key: value for key, value in self.config.items() if key != "algorithm_type"}
            config = {"clip_sample": False, "skip_prk_steps": True, **given}
            made = evolve(_read(config, self.asked, name, sampler), sde=sampler == "dpmpp_2m_sde")
            if wrong := known.refused(config) + _impossible(made):
                raise InvalidParameterError(
                    f"scheduler={sampler!r} cannot follow the model's {', '.join(wrong)}.",
                    hint=f"Leave it out: the model's own is {self.sampler}.",
                )
        if placement is None:
            return made
        if placement not in PLACEMENTS:
            raise InvalidParameterError(
                f"sigmas={placement!r} is not known.", hint=f"Use one of {', '.join(PLACEMENTS)}."
            )
        if "use_karras_sigmas" not in class_of(sampler)[1].settings and placement != "uniform":
            raise InvalidParameterError(
                f"sigmas={placement!r} has no meaning for {sampler}: it goes through timesteps.",
                hint="Leave it out, or take for example scheduler='dpmpp_2m'.",
            )
        return evolve(made, placement=placement)

    def alphas(self) -> Any:
        """The product of 1 - β up to each noise level, shape (train_steps,), float64."""
        import numpy as np

        if self.betas == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps) ** 2
        found = np.cumprod(1.0 - betas)
        if self.zero_snr:
            roots = np.sqrt(found)
            found = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
            # Not quite pure noise: the level stays finite.
            found[-1] = 2.0**-24
        return found


def _read(config: Mapping[str, Any], asked: str, name: str, sampler: str) -> NoiseSettings:
    """The settings as the class ``name`` reads them, whether they are followed or not."""
    known = CLASSES[name].effective(config)
    placed = [placement for key, placement in _PLACEMENTS.items() if known.get(key)]
    return NoiseSettings(
        sampler=sampler,
        asked=asked,
        config=config,
        train_steps=int(known["num_train_timesteps"]),
        betas=str(known["beta_schedule"]),
        beta_start=float(known["beta_start"]),
        beta_end=float(known["beta_end"]),
        zero_snr=bool(known.get("rescale_betas_zero_snr")),
        prediction=str(known["prediction_type"]),
        spacing=str(known.get("timestep_spacing", "linspace")),
        steps_offset=int(known.get("steps_offset", 0)),
        placement=placed[0] if placed else "uniform",
        lowest=known.get("sigma_min"),
        highest=known.get("sigma_max"),
        log_linear=known.get("interpolation_type") == "log_linear",
        continuous=known.get("timestep_type") == "continuous" and known["prediction_type"] == "v_prediction",
        final_zero=known.get("final_sigmas_type", "zero") == "zero",
        alpha_to_one=bool(known.get("set_alpha_to_one", True)),
        clip=float(known["clip_sample_range"]) if known.get("clip_sample") else None,
        order=int(known.get("solver_order", 2)),
        sde=known.get("algorithm_type") == "sde-dpmsolver++",
        heun=known.get("solver_type") == "heun",
        bh1=known.get("solver_type") == "bh1",
        lower_order_final=bool(known.get("lower_order_final", True)),
        euler_at_final=bool(known.get("euler_at_final")),
        uncorrected=tuple(known.get("disable_corrector", ())),
        original_steps=int(known.get("original_inference_steps", 50)),
        timestep_scaling=float(known.get("timestep_scaling", 10.0)),
        runge_kutta=not known.get("skip_prk_steps", True),
        large_variance=known.get("variance_type") == "fixed_large",
    )


def _impossible(found: NoiseSettings) -> list[str]:
    """Values that no model was trained with."""
    wrong = []
    if not 0 < found.beta_start <= found.beta_end < 1:
        wrong.append(f"noise from {found.beta_start} to {found.beta_end}")
    if not 0 <= found.steps_offset < found.train_steps <= _MOST_STEPS:
        wrong.append(f"num_train_timesteps={found.train_steps}, steps_offset={found.steps_offset}")
    if not 1 <= found.original_steps <= found.train_steps:
        wrong.append(f"original_inference_steps={found.original_steps}")
    if sum(bool(found.config.get(key)) for key in _PLACEMENTS) > 1:
        wrong.append(" and ".join(key for key in _PLACEMENTS if found.config.get(key)))
    if found.sde and found.order == 3:
        wrong.append("solver_order=3 of the stochastic solver")
    return wrong


def _refusal(asked: str, wrong: list[str]) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"The model's scheduler ({asked}) has settings that are not implemented: {', '.join(wrong)}.",
        hint=f"Samplers here: {', '.join(sorted(samplers()))}.",
    )


__all__ = ["PLACEMENTS", "NoiseSettings"]
