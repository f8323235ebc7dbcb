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
from ..errors import InvalidParameterError
from ..text.requests import TextRequest
from .adapter_rows import AdaptedAnswer
from .adapters import Adapters
from .answers import AnswerStream, Voice
from .choices import ChoicesStream, choices
from .rows import SharedBatch
from .speech import Answering, Dialect
from .speech import check as check_speech


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


__all__ = ["Flags", "TextModel", "admit", "check"]
