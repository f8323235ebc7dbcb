"""The mock back end: serves every model without weights, network or mlx, and marks all that it makes.

It runs only where it is named: ``InferenceEngine(backend="mock")``, or the feature flag ``core.mock``.
Every event has ``mock=True``, texts begin with ``[mock]`` and recipes of pictures say ``{"mock": True}``.
It is for building and testing what surrounds an engine, never an answer to a failure.
"""

from __future__ import annotations

import array
import hashlib
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from ..contract.checks import Check
from ..contract.configuration import ModelCard, ModelConfiguration, Source
from ..contract.events import Array, Event, Finished, FinishReason, Progress, Usage
from ..contract.hookspecs import Claim, Fit, LoadContext, Loaded, hookimpl
from ..contract.requests import Request
from ..errors import UnsupportedInputError
from ..pictures.outputs import ImageReady
from ..pictures.requests import ImageRequest
from ..text.outputs import TextDelta
from ..text.requests import TextRequest
from ..vectors.outputs import Embeddings, Scores
from ..vectors.requests import EmbedRequest, RankRequest

NAME = "mock"
DIMENSION = 8
_KINDS = ("vlm", "embed", "diffusion")


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


def mock_kind(configuration: ModelConfiguration) -> str:
    """The configured kind, else the one that the id mentions, else ``"llm"``."""
    return configuration.kind or next((kind for kind in _KINDS if kind in configuration.id.lower()), "llm")


@frozen
class MockModel:
    """What the mock "loads"."""

    kind: str


class MockPlugin:
    """A plugin that serves every model, and says so."""

    @hookimpl
    def claim_model(self, card: ModelCard) -> Claim:
        return Claim(
            kind=mock_kind(card.configuration),
            fit=Fit.NATIVE,
            files=(),
            capabilities=frozenset({"mock"}),
            uses_mlx=False,
            reason="the mock back end serves everything",
        )

    @hookimpl
    def load_model(self, card: ModelCard, context: LoadContext) -> Loaded:
        context.report(Progress(stage="load", done=1, total=1, mock=True))
        info = {"mock": True, "dimension": DIMENSION, "prompts": {}, "similarity": "cosine"}
        return Loaded(model=MockModel(mock_kind(card.configuration)), info=info)

    @hookimpl
    def generate(self, model: MockModel, request: Request) -> Iterator[Event | None]:
        serves = {"embed": (EmbedRequest, RankRequest), "diffusion": (ImageRequest,)}
        if not isinstance(request, serves.get(model.kind, (TextRequest,))):
            raise UnsupportedInputError(
                f"A mock model of kind {model.kind!r} does not take a {type(request).__name__}."
            )
        if isinstance(request, TextRequest):
            return _text(request)
        if isinstance(request, EmbedRequest):
            return _embed(request)
        if isinstance(request, RankRequest):
            return _rank(request)
        assert isinstance(request, ImageRequest)
        return _image(request)

    @hookimpl
    def self_test(self) -> tuple[Check, ...]:
        return (Check(name="mock", status="warning", detail="The mock back end is in use: nothing is real."),)


def _text(request: TextRequest) -> Iterator[Event | None]:
    said = request.messages[-1].text if request.messages else request.prompt or ""
    answer = f"[mock] This is no model. You said: {said}"
    words = answer.split(" ")
    limit = request.params.max_tokens
    shown = words if limit is None else words[:limit]
    for number, word in enumerate(shown):
        yield TextDelta(text=word if number == 0 else f" {word}", token_ids=(number,), mock=True)
    asked = " ".join(message.text for message in request.messages) or said
    yield Finished(
        reason=FinishReason.STOP if len(shown) == len(words) else FinishReason.LENGTH,
        usage=Usage(prompt_tokens=len(asked.split()), completion_tokens=len(shown)),
        mock=True,
    )


def _embed(request: EmbedRequest) -> Iterator[Event | None]:
    for index, text in enumerate(request.texts):
        digest = hashlib.sha256(text.encode()).digest()
        size = min(DIMENSION, request.truncate_dim or DIMENSION)
        values = array.array("f", (byte / 255 for byte in digest[:size]))
        vectors = Array(data=values.tobytes(), shape=(1, size), dtype="float32")
        yield Embeddings(indices=(index,), vectors=vectors, mock=True)
    words = sum(len(text.split()) for text in request.texts)
    yield Finished(usage=Usage(prompt_tokens=words), mock=True)


def _rank(request: RankRequest) -> Iterator[Event | None]:
    wanted = set(request.query.lower().split())
    for index, text in enumerate(request.documents):
        shared = wanted & set(text.lower().split())
        yield Scores(indices=(index,), scores=(len(shared) / max(1, len(wanted)),), mock=True)
    yield Finished(mock=True)


def _image(request: ImageRequest) -> Iterator[Event | None]:
    width, height = request.size or (64, 64)
    steps = request.steps or 2
    for number in range(request.n):
        for step in range(steps):
            yield Progress(stage="denoise", done=step + 1, total=steps, index=number, mock=True)
        # A checkerboard in magenta and black: nobody takes it for a picture.
        row = [bytes((255, 0, 255)) if x // 8 % 2 else bytes(3) for x in range(width + 8)]
        lines = (b"".join(row[y // 8 % 2 * 8 :][:width]) for y in range(height))
        pixels = Array(data=b"".join(lines), shape=(height, width, 3), dtype="uint8")
        recipe = {"mock": True, "prompt": request.prompt, "seed": request.seed, "steps": steps}
        yield ImageReady(pixels=pixels, recipe=recipe, index=number, mock=True)
    yield Finished(mock=True)


__all__ = ["MockModel", "MockPlugin", "mock_card", "mock_kind"]
