"""The hooks. This module is what the entry point names, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlxengine import Claim, Command, Fit, hookimpl

if TYPE_CHECKING:
    from mlxengine import (
        Check,
        Event,
        Feature,
        LoadContext,
        Loaded,
        ModelCard,
        ModelConfiguration,
        Request,
        RunContext,
    )


@hookimpl
def list_features() -> Sequence[Feature[Any]]:
    from .features import FEATURES

    return FEATURES


@hookimpl
def list_models() -> Sequence[ModelConfiguration]:
    from .models import MODELS

    return MODELS


@hookimpl
def list_commands() -> Sequence[Command]:
    return [
        Command(
            name="markov",
            summary="Train a Markov chain, or let one speak.",
            parser=f"{__package__}.cli:configure",
            target=f"{__package__}.cli:run",
        )
    ]


@hookimpl
def claim_model(card: ModelCard) -> Claim | None:
    if card.architecture != "markov":
        return None
    return Claim(
        kind="markov",
        fit=Fit.NATIVE,
        files=("config.json", "table.json"),
        capabilities=frozenset({"continuation"}),
        uses_mlx=False,
        reason="config.json says model_type markov",
    )


@hookimpl
def load_model(card: ModelCard, context: LoadContext) -> Loaded | None:
    from ._load import load

    return load(card, context)


@hookimpl
def generate(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    from ._generate import generate
    from .chain import Chain
    from .types import ContinueRequest

    if not isinstance(model, Chain) or not isinstance(request, ContinueRequest):
        return None
    return generate(model, request, context)


@hookimpl
def self_test() -> Sequence[Check]:
    from mlxengine import Check

    from .chain import Chain

    text = "one two three one two three"
    walk = Chain.train(text, order=2).walk("one two", 0, backoff=False)
    said = "".join(unit for unit, _, _ in islice(walk, 4))
    if said == " three one two three":
        return [Check(name="a chain continues its own training text")]
    return [Check(name="a chain continues its own training text", status="failed", detail=f"found {said!r}")]
