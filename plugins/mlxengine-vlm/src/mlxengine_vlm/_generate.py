"""Serving text requests, with media, on a vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from attrs import evolve
from mlxengine import Event, Request, RunContext, TextRequest
from mlxengine.toolkit import serving
from mlxengine.toolkit.web import fetch

from . import features
from ._decoder import VisionAnswer
from ._media import WEB, MediaLimits
from ._model import VisionModel
from ._prompt import Media
from ._score import score
from ._sight import Prompt

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
    """The plugin's ``generate``: ``None`` for what is not a text request on a vision-language model."""
    if not isinstance(model, VisionModel):
        return None

    def text(asked: serving.Asked) -> Iterator[Event | None]:
        def go_on(limits: MediaLimits) -> Iterator[Event | None]:
            media = Media(model, limits)
            return asked.go_on(
                model.prompts,
                lambda ids: _answer(model, asked.request, context, media.prompt(ids)),
                media,
            )

        limits = MediaLimits(pixels=context.features.get(features.MAX_PIXELS))
        urls = _urls(asked.request) if context.features.get(features.URLS) else []
        return _once_fetched(context, limits, urls, go_on) if urls else go_on(limits)

    return serving.serve(model, request, context, FLAGS, score=score, text=text)


def _answer(
    model: VisionModel, request: TextRequest, context: RunContext, prompt: Prompt
) -> Iterator[Event | None]:
    sight = model.sight(prompt, remember=context.features.get(features.PROMPT_CACHE))

    def ready(answer: VisionAnswer) -> None:
        answer.media, answer.sight = prompt.media, sight

    return serving.admit(model, request, context, FLAGS, prompt.ids, VisionAnswer, ready)


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
