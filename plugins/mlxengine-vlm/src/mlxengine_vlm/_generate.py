"""Serving text requests, with media, on a vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from attrs import evolve
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
from mlxengine.toolkit.adapters import change
from mlxengine.toolkit.serving import Flags, admit, check
from mlxengine.toolkit.speech import shown

from . import features
from ._decoder import VisionAnswer
from ._media import WEB, MediaLimits
from ._model import VisionModel
from ._prompt import Media
from ._score import score
from ._sight import Prompt
from ._web import fetch

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
    """The plugin's ``generate``: ``None`` for what is not a text request on a vision-language model."""
    if not isinstance(model, VisionModel):
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
    plain = not context.features.get(features.SPECIAL_TOKENS_IN_TEXT)
    told = shown(model.dialect, asked)

    def go_on(limits: MediaLimits) -> Iterator[Event | None]:
        media = Media(model, limits)
        if isinstance(request, PrepareRequest):
            return model.prompts.tell(told, plain, media)
        return model.prompts.serve(
            told, plain, lambda ids: _answer(model, asked, context, media.prompt(ids)), media
        )

    limits = MediaLimits(pixels=context.features.get(features.MAX_PIXELS))
    urls = _urls(asked) if context.features.get(features.URLS) else []
    if urls:
        return _once_fetched(context, limits, urls, go_on)
    return go_on(limits)


def _answer(
    model: VisionModel, request: TextRequest, context: RunContext, prompt: Prompt
) -> Iterator[Event | None]:
    sight = model.sight(prompt, remember=context.features.get(features.PROMPT_CACHE))

    def ready(answer: VisionAnswer) -> None:
        answer.media, answer.sight = prompt.media, sight

    return admit(model, request, context, FLAGS, prompt.ids, VisionAnswer, ready)


def _urls(request: TextRequest) -> list[str]:
    sources: list[object] = []
    for part in (part for item in request.messages for part in item.parts):
        sources += [getattr(part, "source", None), *getattr(part, "frames", ())]
        sources += [image.source for image in getattr(part, "images", ())]
    return [source for source in sources if isinstance(source, str) and source.startswith(WEB)]


def _once_fetched(
    context: RunContext,
    limits: MediaLimits,
    urls: list[str],
    go_on: Callable[[MediaLimits], Iterator[Event | None]],
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
    yield from go_on(evolve(limits, url=lambda url, _limit: found[url]))


__all__ = ["serve"]
