"""Serving text requests on a language model."""

from __future__ import annotations

from collections.abc import Iterator

from mlxengine import (
    Event,
    LoadAdapterRequest,
    PrepareRequest,
    Request,
    RunContext,
    ScoreRequest,
    TextRequest,
    UnloadAdapterRequest,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError
from mlxengine.toolkit.adapter_rows import AdaptedAnswer
from mlxengine.toolkit.adapters import change
from mlxengine.toolkit.answers import AnswerStream
from mlxengine.toolkit.choices import ChoicesStream, choices
from mlxengine.toolkit.speech import Answering, check, shown

from . import features
from ._model import LanguageModel
from ._score import score


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: ``None`` for what is not a text request on a language model."""
    if not isinstance(model, LanguageModel):
        return None
    if isinstance(request, ScoreRequest):
        return score(model, request, context)
    if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest):
        context.features.require(features.LORA)
        return change(model.adapters, request, context.fetch, model.kept.forget)
    asked = request.request if isinstance(request, PrepareRequest) else request
    if not isinstance(asked, TextRequest):
        return None
    _check(model, asked, context)
    plain = not context.features.get(features.SPECIAL_TOKENS_IN_TEXT)
    told = shown(model.dialect, asked)
    if isinstance(request, PrepareRequest):
        return model.prompts.tell(told, plain)
    return model.prompts.serve(told, plain, lambda prompt: _admit(model, asked, context, prompt))


def _check(model: LanguageModel, request: TextRequest, context: RunContext) -> None:
    """Refuse what the model or the flags do not allow, before anything is prepared."""
    if request.params.logprobs or request.params.top_logprobs:
        context.features.require(features.LOGPROBS)
    if request.params.grammar is not None:
        context.features.require(features.STRUCTURED_OUTPUT)
    if request.params.adapter is not None:
        context.features.require(features.LORA)
    model.adapters.resolve(request.params.adapter)
    _check_tokens(model, request)
    _check_serving(model, context)
    if request.tools:
        context.features.require(features.TOOL_CALLING)
    if request.params.thinking_budget is not None:
        context.features.require(features.REASONING)
    check(model.dialect, request, model.card.id)


def _admit(
    model: LanguageModel, request: TextRequest, context: RunContext, prompt: list[int]
) -> Iterator[Event | None]:
    adapter = model.adapters.resolve(request.params.adapter)  # what was loaded before may be gone
    streaming = context.features.get(features.STREAMING)
    answering = Answering(
        dialect=model.dialect,
        request=request,
        prompt=prompt,
        stop_ids=model.stop_ids,
        parted=context.features.get(features.REASONING),
        deltas=streaming,
    )
    params = answering.params
    if params.grammar is not None:
        context.features.require(features.STRUCTURED_OUTPUT)
    answers = choices(
        model.voice,
        prompt,
        params,
        streaming=streaming,
        priority=request.priority,
        make=AdaptedAnswer,
    )
    for answer in answers:
        answering.prepare(answer)
        answer.reuse = context.features.get(features.PROMPT_CACHE)
        assert isinstance(answer, AdaptedAnswer)
        model.adapters.give(answer, adapter)
        model.batch.admit(answer)
    if len(answers) == 1:
        return AnswerStream(model.batch, answers[0], context)
    return ChoicesStream(model.batch, answers, context)


def _check_serving(model: LanguageModel, context: RunContext) -> None:
    for name, flag in features.SERVING.items():
        wanted: object = context.features.get(flag)
        if wanted != getattr(model.serving, name):
            raise FeatureUnavailableError(
                f"{flag.name} is {getattr(model.serving, name)!r} for the loaded model; "
                f"one call cannot have {wanted!r}.",
                hint=f"Load the model with features={{{flag.name!r}: {wanted!r}}}.",
            )


def _check_tokens(model: LanguageModel, request: TextRequest) -> None:
    size = model.vocabulary
    wrong = [token for token, _ in request.params.logit_bias or () if token >= size]
    if wrong:
        raise InvalidParameterError(
            f"logit_bias names the token {wrong[0]}; the vocabulary of {model.card.id} has {size} tokens."
        )


__all__ = ["serve"]
