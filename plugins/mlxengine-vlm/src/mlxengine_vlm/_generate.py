"""Serving text requests, with media, on a vision-language model."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator

from mlxengine import Event, Request, RunContext, TextRequest
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError, UnsupportedInputError
from mlxengine.toolkit.answers import AnswerStream
from mlxengine.toolkit.choices import ChoicesStream, choices

from . import features
from ._decoder import VisionAnswer
from ._media import MediaLimits
from ._model import VisionModel
from ._prefill import Prefill, embed
from ._prompt import Prompt, make_prompt


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: ``None`` for what is not a text request on a vision-language model."""
    if not isinstance(model, VisionModel) or not isinstance(request, TextRequest):
        return None
    if request.params.logprobs or request.params.top_logprobs:
        context.features.require(features.LOGPROBS)
    if request.params.adapter is not None:
        raise FeatureUnavailableError(
            f"Vision-language models take no adapters; {request.params.adapter!r} was asked for.",
            hint="Leave params.adapter out, or fuse the adapter into the model.",
        )
    if request.params.grammar is not None:
        context.features.require(features.STRUCTURED_OUTPUT)
    for token, _ in request.params.logit_bias or ():
        if token >= model.vocabulary:
            raise InvalidParameterError(
                f"logit_bias names the token {token}; {model.card.id} has {model.vocabulary} of them."
            )
    limits = MediaLimits(
        pixels=context.features.get(features.MAX_PIXELS),
        url=_fetch if context.features.get(features.URLS) else None,
    )
    prompt = make_prompt(model, request, limits)
    remember = context.features.get(features.PROMPT_CACHE)
    answers = choices(
        model.voice,
        prompt.ids,
        request.params,
        streaming=context.features.get(features.STREAMING),
        priority=request.priority,
        make=VisionAnswer,
    )
    plan = _planner(model, prompt, remember)
    for answer in answers:
        assert isinstance(answer, VisionAnswer)
        answer.media, answer.reuse, answer.plan = prompt.media, remember, plan
        model.batch.admit(answer)
    if len(answers) == 1:
        return AnswerStream(model.batch, answers[0], context)
    return ChoicesStream(model.batch, answers, context)


def _planner(model: VisionModel, prompt: Prompt, remember: bool) -> Callable[[], Prefill]:
    """Makes the language model's inputs when the prompt's turn comes, encoding the media at most once."""
    kept = model.features if remember and prompt.media else None

    def plan() -> Prefill:
        known = kept.get(prompt.media) if kept is not None else None
        made = embed(model.network, model.kind, prompt.ids, prompt.given, model.media_tokens, known)
        if kept is not None and known is None and made.features is not None:
            kept.put(prompt.media, made.features)
        return made

    return plan


def _fetch(url: str, limit: int) -> bytes:
    """The bytes behind an http(s) URL, at most ``limit``."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            data: bytes = answer.read(limit + 1)
    except (OSError, ValueError) as error:
        raise UnsupportedInputError(
            f"The picture at {url!r} cannot be fetched: {error}.",
            hint="Fetch it yourself and pass the bytes.",
        ) from error
    return data


__all__ = ["serve"]
