"""Serving text requests on a language model."""

from __future__ import annotations

from collections.abc import Iterator

from mlxengine import (
    Event,
    Finished,
    LoadAdapterRequest,
    Request,
    RunContext,
    ScoreRequest,
    TextRequest,
    UnloadAdapterRequest,
)
from mlxengine.errors import InvalidParameterError
from mlxengine.toolkit.answers import AnswerStream, ChoicesStream, choices

from . import features
from ._chat import prompt_tokens
from ._load import adapter_folder
from ._model import LanguageModel
from ._score import score


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: ``None`` for what is not a text request on a language model."""
    if not isinstance(model, LanguageModel):
        return None
    if isinstance(request, ScoreRequest):
        return score(model, request, context)
    if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest):
        return _change_adapters(model, request, context)
    if not isinstance(request, TextRequest):
        return None
    if request.params.logprobs or request.params.top_logprobs:
        context.features.require(features.LOGPROBS)
    if request.params.grammar is not None:
        context.features.require(features.STRUCTURED_OUTPUT)
    if request.params.adapter is not None:
        context.features.require(features.LORA)
    lane = model.lane(model.adapters.resolve(request.params.adapter))
    _check_tokens(model, request)
    answers = choices(
        model.voice,
        prompt_tokens(model, request),
        request.params,
        streaming=context.features.get(features.STREAMING),
        priority=request.priority,
    )
    for answer in answers:
        answer.reuse = context.features.get(features.PROMPT_CACHE)
        lane.admit(answer)
    if len(answers) == 1:
        return AnswerStream(lane, answers[0], context)
    return ChoicesStream(lane, answers, context)


def _change_adapters(
    model: LanguageModel, request: LoadAdapterRequest | UnloadAdapterRequest, context: RunContext
) -> Iterator[Event | None]:
    context.features.require(features.LORA)
    if isinstance(request, LoadAdapterRequest):
        folder = adapter_folder(request.source, context.fetch)
        model.adapters.load(request.name, folder, scale=request.scale)
        if request.default:
            model.adapters.default = request.name
    else:
        model.unload_adapter(request.name)
    yield Finished()


def _check_tokens(model: LanguageModel, request: TextRequest) -> None:
    size = model.vocabulary
    wrong = [token for token, _ in request.params.logit_bias or () if token >= size]
    if wrong:
        raise InvalidParameterError(
            f"logit_bias names the token {wrong[0]}; the vocabulary of {model.card.id} has {size} tokens."
        )


__all__ = ["serve"]
