"""The hooks. Importing this imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlxengine import Command, Feature, hookimpl

from . import features

if TYPE_CHECKING:
    from mlxengine import (
        Check,
        Claim,
        Event,
        LoadContext,
        Loaded,
        ModelCard,
        ModelConfiguration,
        Request,
        RunContext,
        SelfTestContext,
    )


@hookimpl
def list_features() -> Sequence[Feature[Any]]:
    return features.FEATURES


@hookimpl
def list_models() -> Sequence[ModelConfiguration]:
    from . import models

    return models.MODELS


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    from ._served import makes_pictures

    if not makes_pictures(card):
        return None
    from ._claim import claim

    return claim(card, _wanted(dict(card.configuration.features).get(features.BACKEND.name)))


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded:
    from . import _load

    return _load.load(card, context, _wanted(context.features.get(features.BACKEND)))


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    from mlxengine import ImageRequest

    from ._generate import PictureModel
    from ._generate import generate as serve

    if not isinstance(model, PictureModel) or not isinstance(request, ImageRequest):
        return None
    return serve(model, request, context)


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(
            name="image",
            summary="make a picture from a prompt",
            parser="mlxengine_diffusion.cli:configure",
            target="mlxengine_diffusion.cli:run",
        )
    ]


@hookimpl
def self_test(context: SelfTestContext) -> Sequence[Check]:
    from ._self_test import self_test as run

    return run(context)


def _wanted(name: object) -> str | None:
    return name if isinstance(name, str) and name != "auto" else None
