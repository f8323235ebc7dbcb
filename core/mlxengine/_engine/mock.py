"""The mock back end: serves every model without weights, network or mlx, and marks all that it makes.

It runs only where it is named: ``InferenceEngine(backend="mock")``, or the feature flag ``core.mock``.
Every event has ``mock=True``; what it makes for a kind, the kind says itself (`Kind.mock`). It is for
building and testing what surrounds an engine, never an answer to a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..contract.checks import Check
from ..contract.configuration import ModelCard, ModelConfiguration, Source
from ..contract.events import Event, Progress
from ..contract.features import Feature
from ..contract.hookspecs import Claim, Fit, LoadContext, Loaded, hookimpl
from ..contract.kinds import Kind, Mock
from ..contract.requests import Request
from ..errors import BackendUnavailableError, UnsupportedInputError

NAME = "mock"


def mock_card(configuration: ModelConfiguration) -> ModelCard:
    """A card for any model that can be named; nothing is looked up."""
    return ModelCard(
        ref=configuration.ref,
        configuration=configuration,
        source=Source.FOLDER,
        commit="0" * 40,
        path=Path(configuration.id),
        tags=("mock",),
    )


class MockPlugin:
    """A plugin that serves every model, and says so; ``kinds`` and ``features`` are those of the engine."""

    def __init__(self, kinds: Callable[[], Mapping[str, Kind]], features: Iterable[Feature[Any]]) -> None:
        self._kinds = kinds
        self._features = features

    def _kind(self, configuration: ModelConfiguration) -> Kind:
        """The configured kind, else the one that the id mentions, else the first."""
        known, name = self._kinds(), configuration.id.lower()
        if configuration.kind is not None:
            return known.get(configuration.kind, Kind(name=configuration.kind))
        mentioned = (kind for kind in known.values() if kind.name in name)
        return next(mentioned, next(iter(known.values())))

    @hookimpl
    def claim_model(self, card: ModelCard) -> Claim:
        kind, problem = self._kind(card.configuration), None
        if kind.mock is None:
            problem = BackendUnavailableError(
                f"The mock back end cannot stand in for models of kind {kind.name!r}.",
                hint="Whoever lists the kind says how: Kind(mock=…).",
            )
        return Claim(
            kind=kind.name,
            fit=Fit.NATIVE,
            files=(),
            capabilities=frozenset({"mock"}),
            uses_mlx=False,
            problem=problem,
            reason="the mock back end serves everything",
            honours=(item.name for item in self._features),
        )

    @hookimpl
    def load_model(self, card: ModelCard, context: LoadContext) -> Loaded:
        context.report(Progress(stage="load", done=1, total=1, mock=True))
        made: Mock = self._kind(card.configuration).find("mock")()
        return Loaded(model=made, info={"mock": True, **made.info})

    @hookimpl
    def generate(self, model: Mock, request: Request) -> Iterator[Event | None]:
        found = model.generate(request)
        if found is None:
            raise UnsupportedInputError(
                f"A mock model of this kind does not take a {type(request).__name__}."
            )
        return found

    @hookimpl
    def self_test(self) -> tuple[Check, ...]:
        return (Check(name="mock", status="warning", detail="The mock back end is in use: nothing is real."),)


__all__ = ["NAME", "MockPlugin", "mock_card"]
