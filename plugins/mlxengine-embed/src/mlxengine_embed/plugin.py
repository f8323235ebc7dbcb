"""The hooks of the embedding plugin. Importing this module imports no model library."""

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
    from ._claim import claim

    return claim(card)


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded | None:
    from ._load import load

    return load(card, context)


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    from ._generate import serve

    return serve(model, request, context)


@hookimpl
def list_commands() -> Sequence[Command]:
    return (
        Command(
            name="embed",
            summary="Turn texts, or pictures, into vectors (.npy, .jsonl, .parquet).",
            parser="mlxengine_embed.commands:configure_embed",
            target="mlxengine_embed.commands:embed",
        ),
        Command(
            name="similarity",
            summary="How similar texts, or pictures, are, as a table.",
            parser="mlxengine_embed.commands:configure_similarity",
            target="mlxengine_embed.commands:similarity",
        ),
    )


@hookimpl
def self_test(context: SelfTestContext) -> Sequence[Check]:
    from ._self_test import self_test as run

    return run(context)
