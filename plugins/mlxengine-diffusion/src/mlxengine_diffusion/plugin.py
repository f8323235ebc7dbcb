"""The hooks. Importing this imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlxengine import (
    Check,
    Claim,
    Command,
    Event,
    Feature,
    Fit,
    ImageRequest,
    LoadContext,
    Loaded,
    MemoryEstimate,
    ModelCard,
    ModelConfiguration,
    Request,
    RunContext,
    SelfTestContext,
    Workload,
    hookimpl,
)
from mlxengine.errors import UnsupportedArchitectureError

from . import features, models
from ._generate import PictureModel
from ._generate import generate as _generate
from .backends import Defaults, Offer, choose
from .sd.layout import document

_CAPABILITIES = frozenset({"image_generation"})


@hookimpl
def list_features() -> Sequence[Feature[Any]]:
    return features.FEATURES


@hookimpl
def list_models() -> Sequence[ModelConfiguration]:
    return models.MODELS


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    found = choose(card, _wanted(dict(card.configuration.features).get(features.BACKEND.name)))
    if found is not None:
        return Claim(
            kind="diffusion",
            fit=Fit.NATIVE,
            files=found.offer.files,
            capabilities=_CAPABILITIES,
            estimate=_estimate(found.offer, models.defaults_for(card, _OWN).size),
            problem=found.offer.problem,
            reason=f"back end {found.reason}",
        )
    name = str(document(card, "model_index.json").get("_class_name"))
    if not name.endswith("Pipeline"):
        return None
    return Claim(
        kind="diffusion",
        fit=Fit.FALLBACK,
        problem=UnsupportedArchitectureError(
            f"No back end here makes pictures with a {name} ({card.id}).",
            hint="Stable Diffusion 1 to 3.5, XL, FLUX.1 schnell and Z-Image are served.",
        ),
        reason=f"a diffusers pipeline of an unknown kind, {name}",
    )


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded:
    from . import _load

    return _load.load(card, context, _wanted(context.features.get(features.BACKEND)))


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    if not isinstance(model, PictureModel) or not isinstance(request, ImageRequest):
        return None
    return _generate(model, request, context)


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(name="image", summary="make a picture from a prompt", target="mlxengine_diffusion.cli:main")
    ]


@hookimpl
def self_test(context: SelfTestContext) -> Sequence[Check]:
    from ._self_test import self_test as run

    return run(context)


_OWN = Defaults()


def _wanted(name: object) -> str | None:
    return name if isinstance(name, str) and name != "auto" else None


def _estimate(offer: Offer, size: tuple[int, int]) -> Any:
    if offer.estimate_bytes is None:
        return None
    calculate = offer.estimate_bytes

    def estimate(workload: Workload) -> MemoryEstimate:
        weights, workspace = calculate(workload.size or size)
        return MemoryEstimate(weights=weights, workspace=workspace)

    return estimate
