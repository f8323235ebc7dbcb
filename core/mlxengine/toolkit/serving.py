"""Text requests of any model: what is refused before anything is prepared, and how answers go on.

A plugin hands over its model, in the form of `TextModel`, and its own features in `Flags`; what is its own
matter, such as pictures, it does before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from attrs import frozen

from ..contract.configuration import ModelCard
from ..contract.events import Event
from ..contract.features import Feature
from ..contract.hookspecs import RunContext
from ..contract.requests import Request
from ..errors import InvalidParameterError
from ..text.requests import (
    LoadAdapterRequest,
    PrepareRequest,
    ScoreRequest,
    TextRequest,
    UnloadAdapterRequest,
)
from .adapter_rows import AdaptedAnswer, ByAdapter
from .adapters import Adapters, change
from .answers import AnswerStream, Voice
from .choices import ChoicesStream, choices
from .conversation import Parts, Prompts
from .rows import SharedBatch
from .speech import Answering, Dialect, shown
from .speech import check as check_speech

Score = Callable[[Any, ScoreRequest, RunContext], Iterator[Event | None]]


class TextModel(Protocol):
    """What is asked of a loaded model."""

    @property
    def card(self) -> ModelCard:
        """What it is, for messages."""
        ...

    @property
    def dialect(self) -> Dialect:
        """How it speaks."""
        ...

    @property
    def adapters(self) -> Adapters:
        """Those that are loaded."""
        ...

    @property
    def kept(self) -> ByAdapter[Any]:
        """What is kept of earlier prompts."""
        ...

    @property
    def prompts(self) -> Prompts:
        """What makes token ids of requests."""
        ...

    @property
    def voice(self) -> Voice:
        """What its answers have in common."""
        ...

    @property
    def batch(self) -> SharedBatch:
        """Where its rows are decoded."""
        ...

    @property
    def stop_ids(self) -> Collection[int]:
        """Token ids that end an answer."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        ...


@frozen(kw_only=True)
class Flags:
    """A plugin's features that requests need, or that say how they are served."""

    streaming: Feature[Any]
    logprobs: Feature[Any]
    structured_output: Feature[Any]
    lora: Feature[Any]
    tool_calling: Feature[Any]
    reasoning: Feature[Any]
    prompt_cache: Feature[Any]
    special_tokens: Feature[Any]


@frozen(kw_only=True)
class Asked:
    """A text request that may be served: for an answer, or for its prompt alone (``prepares``).

    ``shown`` is what the chat template sees of it; ``plain``: its texts never become special tokens.
    """

    request: TextRequest
    shown: TextRequest
    plain: bool
    prepares: bool

    def go_on(
        self,
        prompts: Prompts,
        answer: Callable[[list[int]], Iterator[Event | None]],
        parts: Parts | None = None,
    ) -> Iterator[Event | None]:
        """Make the prompt, beside the device, and tell it or answer it."""
        if self.prepares:
            return prompts.tell(self.shown, self.plain, parts)
        return prompts.serve(self.shown, self.plain, answer, parts)


def serve(
    model: TextModel,
    request: Request,
    context: RunContext,
    flags: Flags,
    *,
    score: Score,
    text: Callable[[Asked], Iterator[Event | None]],
) -> Iterator[Event | None] | None:
    """A plugin's ``generate`` on a model of its own: each kind of request goes to what serves it.

    Args:
        model: the model.
        request: any request; ``None`` is returned for one that is not of text.
        context: of the call.
        flags: the plugin's.
        score: serves a `ScoreRequest`.
        text: serves a `TextRequest` after `check`.

    Raises:
        MLXEngineError: it cannot be served.
    """
    if isinstance(request, ScoreRequest):
        return score(model, request, context)
    if isinstance(request, LoadAdapterRequest | UnloadAdapterRequest):
        context.features.require(flags.lora)
        return change(model.adapters, request, context.fetch, model.kept.forget)
    prepares = isinstance(request, PrepareRequest)
    asked = request.request if isinstance(request, PrepareRequest) else request
    if not isinstance(asked, TextRequest):
        return None
    check(model, asked, context, flags)
    plain = not context.features.get(flags.special_tokens)
    return text(Asked(request=asked, shown=shown(model.dialect, asked), plain=plain, prepares=prepares))


def check(model: TextModel, request: TextRequest, context: RunContext, flags: Flags) -> None:
    """Refuse what the model or the flags do not allow.

    Raises:
        FeatureUnavailableError: a feature is off that the request needs.
        InvalidParameterError: an adapter or a token is not known, or there are tools and no messages.
        UnsupportedInputError: the model cannot do it.
    """
    params = request.params
    for asked, flag in (
        (params.logprobs or params.top_logprobs, flags.logprobs),
        (params.grammar is not None, flags.structured_output),
        (params.adapter is not None, flags.lora),
        (request.tools, flags.tool_calling),
        (params.thinking_budget is not None, flags.reasoning),
    ):
        if asked:
            context.features.require(flag)
    model.adapters.resolve(params.adapter)
    check_speech(model.dialect, request, model.card.id)
    size = model.vocabulary
    wrong = [token for token, _ in params.logit_bias or () if token >= size]
    if wrong:
        raise InvalidParameterError(
            f"logit_bias names the token {wrong[0]}; the vocabulary of {model.card.id} has {size} tokens."
        )


def admit(
    model: TextModel,
    request: TextRequest,
    context: RunContext,
    flags: Flags,
    prompt: Sequence[int],
    make: type[AdaptedAnswer],
    ready: Callable[[Any], None] = lambda _answer: None,
) -> Iterator[Event | None]:
    """Put the answers to a request into the batch; their events.

    Args:
        model: the model.
        request: what is asked, after `check`.
        context: of the call.
        flags: the plugin's.
        prompt: token ids.
        make: the plugin's class of answers.
        ready: given each answer before it goes in.
    """
    adapter = model.adapters.resolve(request.params.adapter)  # what was loaded before may be gone
    streaming = context.features.get(flags.streaming)
    answering = Answering(
        dialect=model.dialect,
        request=request,
        prompt=prompt,
        stop_ids=model.stop_ids,
        parted=context.features.get(flags.reasoning),
        deltas=streaming,
    )
    params = answering.params
    if params.grammar is not None:
        context.features.require(flags.structured_output)
    answers = choices(
        model.voice, list(prompt), params, streaming=streaming, priority=request.priority, make=make
    )
    for answer in answers:
        answering.prepare(answer)
        assert isinstance(answer, AdaptedAnswer)
        answer.reuse = context.features.get(flags.prompt_cache)
        ready(answer)
        model.adapters.give(answer, adapter)
        model.batch.admit(answer)
    if len(answers) == 1:
        return AnswerStream(model.batch, answers[0], context)
    return ChoicesStream(model.batch, answers, context)


__all__ = ["Asked", "Flags", "Score", "TextModel", "admit", "check", "serve"]
