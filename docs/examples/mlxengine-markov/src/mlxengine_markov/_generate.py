"""One request: a step of the iterator is one unit of text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mlxengine import Event, Finished, FinishReason, RunContext, TextDelta, TokenUsage
from mlxengine.errors import UnsupportedInputError

from .chain import Chain, split
from .features import BACKOFF, CHOICES
from .types import Choice, ContinueRequest


def generate(chain: Chain, request: ContinueRequest, context: RunContext) -> Iterator[Event]:
    """Check the request, which a generator could only do at its first step, and start."""
    if "\0" in request.text:
        raise UnsupportedInputError("The text holds a NUL character.", hint="Give text, not bytes.")
    return _walk(chain, request, backoff=context.features.get(BACKOFF), say=context.features.get(CHOICES))


def _walk(chain: Chain, request: ContinueRequest, *, backoff: bool, say: bool) -> Iterator[Event]:
    count = 0
    for unit, probability, candidates in islice(
        chain.walk(request.text, request.seed, backoff=backoff), request.length
    ):
        count += 1
        if say:
            yield Choice(text=unit, probability=probability, candidates=candidates)
        yield TextDelta(text=unit)
    usage = TokenUsage(prompt_tokens=len(split(request.text, chain.unit)), completion_tokens=count)
    reason = FinishReason.LENGTH if count == request.length else FinishReason.STOP
    yield Finished(reason=reason, usage=usage)
