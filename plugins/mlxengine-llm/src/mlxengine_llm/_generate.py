"""Serving text requests on a language model."""

from __future__ import annotations

from collections.abc import Iterator

from mlxengine import Event, Request, RunContext
from mlxengine.errors import FeatureUnavailableError
from mlxengine.toolkit import serving
from mlxengine.toolkit.adapter_rows import AdaptedAnswer

from . import features
from ._model import LanguageModel
from ._score import score

FLAGS = serving.Flags(
    streaming=features.STREAMING,
    logprobs=features.LOGPROBS,
    structured_output=features.STRUCTURED_OUTPUT,
    lora=features.LORA,
    tool_calling=features.TOOL_CALLING,
    reasoning=features.REASONING,
    prompt_cache=features.PROMPT_CACHE,
    special_tokens=features.SPECIAL_TOKENS_IN_TEXT,
)


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: ``None`` for what is not a text request on a language model."""
    if not isinstance(model, LanguageModel):
        return None

    def text(asked: serving.Asked) -> Iterator[Event | None]:
        _check_serving(model, context)
        return asked.go_on(
            model.prompts,
            lambda ids: serving.admit(model, asked.request, context, FLAGS, ids, AdaptedAnswer),
        )

    return serving.serve(model, request, context, FLAGS, score=score, text=text)


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
