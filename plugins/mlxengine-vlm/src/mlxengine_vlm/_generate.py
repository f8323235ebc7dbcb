"""Serving text requests, with media, on a vision-language model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from attrs import evolve
from mlxengine import (
    Event,
    LoadAdapterRequest,
    Request,
    RunContext,
    ScoreRequest,
    TextRequest,
    UnloadAdapterRequest,
)
from mlxengine.errors import FeatureUnavailableError, InvalidParameterError
from mlxengine.toolkit.adapters import change
from mlxengine.toolkit.answers import AnswerStream
from mlxengine.toolkit.choices import ChoicesStream, choices

from . import features
from ._decoder import VisionAnswer
from ._media import WEB, MediaLimits
from ._model import VisionModel
from ._prompt import make_prompt, write
from ._score import score
from ._sight import Prompt
from ._web import fetch


def serve(model: object, request: Request, context: RunContext) -> Iterator[Event | None] | None:
    """The plugin's ``generate``: ``None`` for what is not a text request on a vision-language model."""
    if not isinstance(model, VisionModel):
        return None
    if isinstance(request, ScoreRequest):
        return score(model, request, context)
    if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest):
        context.features.require(features.LORA)
        return change(model.adapters, request, context.fetch, model.kept.forget)
    if not isinstance(request, TextRequest):
        return None
    _check(model, request, context)
    limits = MediaLimits(pixels=context.features.get(features.MAX_PIXELS))
    urls = _urls(request) if context.features.get(features.URLS) else []
    if urls:
        return _once_fetched(model, request, context, limits, urls)
    return _admit(model, request, context, limits)


def _check(model: VisionModel, request: TextRequest, context: RunContext) -> None:
    """Refuse what was asked for and would have to be ignored."""
    params = request.params
    if params.logprobs or params.top_logprobs:
        context.features.require(features.LOGPROBS)
    if params.grammar is not None:
        context.features.require(features.STRUCTURED_OUTPUT)
    if params.adapter is not None:
        context.features.require(features.LORA)
    model.adapters.resolve(params.adapter)
    for asked, what in (
        (request.tools or None, "tools"),
        (params.thinking, "a switch for reasoning"),
        (params.thinking_budget, "a bound on reasoning"),
    ):
        if asked is not None:
            raise FeatureUnavailableError(
                f"The vision-language plugin does not have {what}, which the request asks for.",
                hint="Leave it out, or ask a language model.",
            )
    for token, _ in params.logit_bias or ():
        if token >= model.vocabulary:
            raise InvalidParameterError(
                f"logit_bias names the token {token}; {model.card.id} has {model.vocabulary} of them."
            )


def _admit(
    model: VisionModel, request: TextRequest, context: RunContext, limits: MediaLimits
) -> Iterator[Event | None]:
    plain = not context.features.get(features.SPECIAL_TOKENS_IN_TEXT)
    return model.aside.prepared(
        lambda: write(model, request, limits, plain),
        lambda written: _answer(model, request, context, make_prompt(model, written)),
    )


def _answer(
    model: VisionModel, request: TextRequest, context: RunContext, prompt: Prompt
) -> Iterator[Event | None]:
    adapter = model.adapters.resolve(request.params.adapter)  # what was loaded before may be gone
    remember = context.features.get(features.PROMPT_CACHE)
    answers = choices(
        model.voice,
        prompt.ids,
        request.params,
        streaming=context.features.get(features.STREAMING),
        priority=request.priority,
        make=VisionAnswer,
    )
    sight = model.sight(prompt, remember=remember)
    for answer in answers:
        assert isinstance(answer, VisionAnswer)
        answer.media, answer.reuse, answer.sight = prompt.media, remember, sight
        model.adapters.give(answer, adapter)
        model.batch.admit(answer)
    if len(answers) == 1:
        return AnswerStream(model.batch, answers[0], context)
    return ChoicesStream(model.batch, answers, context)


def _urls(request: TextRequest) -> list[str]:
    sources: list[object] = []
    for part in (part for item in request.messages for part in item.parts):
        sources += [getattr(part, "source", None), *getattr(part, "frames", ())]
    return [source for source in sources if isinstance(source, str) and source.startswith(WEB)]


def _once_fetched(
    model: VisionModel, request: TextRequest, context: RunContext, limits: MediaLimits, urls: list[str]
) -> Iterator[Event | None]:
    """Fetch on other threads, while the scheduler's serves others; then go on as usual."""
    pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="mlxengine-vlm-fetch")
    try:
        hosts = context.features.get(features.URL_HOSTS).split()
        waiting = {url: pool.submit(fetch, url, limits.size, hosts) for url in dict.fromkeys(urls)}
        while wait(waiting.values(), timeout=0.002).not_done:
            yield None
        found = {url: future.result() for url, future in waiting.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    yield from _admit(model, request, context, evolve(limits, url=lambda url, _limit: found[url]))


__all__ = ["serve"]
