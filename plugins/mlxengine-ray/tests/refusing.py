"""A plugin for every kind of model, whose models refuse some texts and fail on others."""

from __future__ import annotations

import array
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field
from mlxengine import (
    Array,
    Claim,
    Embeddings,
    EmbedRequest,
    Event,
    Finished,
    Fit,
    ImageReady,
    ImageRequest,
    Loaded,
    MemoryEstimate,
    PredictRequest,
    Request,
    Scores,
    TextDelta,
    TextRequest,
    hookimpl,
)
from mlxengine.errors import PromptTooLongError, QueueFullError


def write_refusing(folder: Path, kind: str) -> Path:
    """A model of the plugin's, as a folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "refusing", "kind": kind}))
    return folder


@define(eq=False)
class Refusing:
    """A text with ``long`` in it is too long; one with ``crash`` raises; one with ``busy`` is refused once.

    A vector is the text's length and its number of words; a score is how many documents' words the query has.
    """

    asked: list[Request] = field(factory=list)
    busy: set[str] = field(factory=set)

    @hookimpl
    def claim_model(self, card: Any) -> Claim | None:
        return Claim(
            kind=card.config["kind"],
            fit=Fit.NATIVE,
            files=("config.json",),
            estimate=lambda _workload: MemoryEstimate(weights=0),
            uses_mlx=False,
        )

    @hookimpl
    def load_model(self, card: Any, context: Any) -> Loaded:
        return Loaded(model=card.id, info={"dimension": 2, "prompts": {}})

    @hookimpl
    def generate(self, model: object, request: Request, context: Any) -> Iterator[Event | None]:
        self.asked.append(request)
        for text in _texts(request):
            if "long" in text:
                raise PromptTooLongError("It is too long.", hint="Shorten it.")
            if "busy" in text and text not in self.busy:
                self.busy.add(text)
                raise QueueFullError("Others wait.")
            if "crash" in text:
                raise ZeroDivisionError("a bug")
        return _answered(request)


def _texts(request: Request) -> list[str]:
    if isinstance(request, EmbedRequest):
        return [str(item) for item in request.texts]
    if isinstance(request, PredictRequest):
        return [" ".join(pair) for pair in request.pairs]
    return [request.prompt] if isinstance(request, ImageRequest) else [request.messages[-1].text]


def _answered(request: Request) -> Iterator[Event]:
    if isinstance(request, EmbedRequest):
        values = array.array("f", (n for t in _texts(request) for n in (len(t), len(t.split()))))
        indices = tuple(range(len(request.texts)))
        vectors = Array(data=values.tobytes(), shape=(len(indices), 2), dtype="float32")
        yield Embeddings(indices=indices, vectors=vectors)
    elif isinstance(request, PredictRequest):
        for index, (query, document) in enumerate(request.pairs):
            shared = set(query.split()) & set(document.split())
            yield Scores(indices=(index,), scores=(float(len(shared)),))
    elif isinstance(request, ImageRequest):
        seed = 7 if request.seed is None else request.seed
        pixels = Array(data=bytes([seed] * 48), shape=(4, 4, 3), dtype="uint8")
        yield ImageReady(pixels=pixels, recipe={"prompt": request.prompt, "seed": seed})
    elif isinstance(request, TextRequest):
        pictures = len(request.messages[-1].parts) - 1
        yield TextDelta(text=f"{len(request.messages)} messages, {pictures} pictures: {_texts(request)[0]}")
    yield Finished()
