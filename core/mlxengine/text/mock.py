"""What the mock back end says for a model that answers in text."""

from __future__ import annotations

from collections.abc import Iterator

from ..contract.events import Event, Finished, FinishReason
from ..contract.kinds import Mock
from ..contract.requests import Request
from ..contract.tokens import TokenUsage
from .outputs import Prepared, TextDelta
from .requests import PrepareRequest, TextRequest


class TextMock(Mock):
    """Says that it is no model, and what it was told."""

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        if isinstance(request, PrepareRequest):
            return _prepared(request.request)
        return _text(request) if isinstance(request, TextRequest) else None


def _asked(request: TextRequest) -> str:
    """All that the prompt says; each of its words counts as a token."""
    return request.prompt or " ".join(message.text for message in request.messages)


def _prepared(request: TextRequest) -> Iterator[Event | None]:
    asked = _asked(request)
    yield Prepared(token_ids=tuple(range(len(asked.split()))), text=asked, mock=True)
    yield Finished(mock=True)


def _text(request: TextRequest) -> Iterator[Event | None]:
    said = request.messages[-1].text if request.messages else request.prompt or ""
    answer = f"[mock] This is no model. You said: {said}"
    words = answer.split(" ")
    limit = request.params.max_tokens
    shown = words if limit is None else words[:limit]
    for number, word in enumerate(shown):
        yield TextDelta(text=word if number == 0 else f" {word}", token_ids=(number,), mock=True)
    yield Finished(
        reason=FinishReason.STOP if len(shown) == len(words) else FinishReason.LENGTH,
        usage=TokenUsage(prompt_tokens=len(_asked(request).split()), completion_tokens=len(shown)),
        mock=True,
    )


__all__ = ["TextMock"]
