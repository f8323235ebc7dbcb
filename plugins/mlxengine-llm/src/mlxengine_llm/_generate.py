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
from mlxengine.errors import FeatureUnavailableError
from mlxengine.toolkit.adapter_rows import AdaptedAnswer
from mlxengine.toolkit.adapters import change
from mlxengine.toolkit.serving import Flags, admit, check
from mlxengine.toolkit.speech import shown

from . import features
from ._model import LanguageModel
from ._score import score

FLAGS = Flags(
    streaming=features.STREAMING,
    logprobs=features.LOGPROBS,
    structured_output=features.STRUCTURED_OUTPUT,
    lora=features.LORA,
    tool_calling=features.TOOL_CALLING,
    reasoning=features.REASONING,
    prompt_cache=features.PROMPT_CACHE,
)


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
    check(model, asked, context, FLAGS)
    _check_serving(model, context)
    plain = not context.features.get(features.SPECIAL_TOKENS_IN_TEXT)
    told = shown(model.dialect, asked)
    if isinstance(request, PrepareRequest):
        return model.prompts.tell(told, plain)
    return model.prompts.serve(
        told, plain, lambda prompt: admit(model, asked, context, FLAGS, prompt, AdaptedAnswer)
    )


def _check_serving(model: LanguageModel, context: RunContext) -> None:
    for name, flag in features.SERVING.items():
        wanted: object = context.features.get(flag)
        if wanted != getattr(model.serving, name):
            raise FeatureUnavailableError(
                f"{flag.name} is {getattr(model.serving, name)!r} for the loaded model; "
                f"one call cannot have {wanted!r}.",
                hint=f"Load the model with features={{{flag.name!r}: {wanted!r}}}.",
            )


__all__ = ["serve"]
