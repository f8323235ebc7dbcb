"""The hooks of the plugin. Importing this module imports no model library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlxengine import Feature, hookimpl

from . import features

if TYPE_CHECKING:
    from mlxengine import (
        Check,
        Claim,
        Event,
        LoadContext,
        Loaded,
        ModelCard,
        Request,
        RunContext,
        SelfTestContext,
    )


@hookimpl
def list_features() -> Sequence[Feature[Any]]:
    return features.FEATURES


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    from ._claim import claim

    return claim(card)


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded | None:
    from ._load import load

    return load(card, context)


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    from ._load import serve

    return serve(model, request, context)


@hookimpl
def self_test(context: SelfTestContext) -> Sequence[Check]:
    if features.unavailable() is not None:  # said where the flags are listed
        return ()
    from ._self_test import self_test as run

    return run(context)
