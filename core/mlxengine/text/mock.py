"""What the mock back end says for a model that answers in text."""

from __future__ import annotations

from collections.abc import Iterator

from ..contract.events import Event, Finished, FinishReason
from ..contract.kinds import Mock
from ..contract.requests import Request
from ..contract.tokens import TokenUsage
from .outputs import TextDelta
from .requests import TextRequest


class TextMock(Mock):
    """Says that it is no model, and what it was told."""

    def generate(self, request: Request) -> Iterator[Event | None] | None:
        return _text(request) if isinstance(request, TextRequest) else None


def _text(request: TextRequest) -> Iterator[Event | None]:
    said = request.messages[-1].text if request.messages else request.prompt or ""
    answer = f"[mock] This is no model. You said: {said}"
    words = answer.split(" ")
    limit = request.params.max_tokens
    shown = words if limit is None else words[:limit]
    for number, word in enumerate(shown):
        yield TextDelta(text=word if number == 0 else f" {word}", token_ids=(number,), mock=True)
    asked = " ".join(message.text for message in request.messages) or said
    yield Finished(
        reason=FinishReason.STOP if len(shown) == len(words) else FinishReason.LENGTH,
        usage=TokenUsage(prompt_tokens=len(asked.split()), completion_tokens=len(shown)),
        mock=True,
    )


__all__ = ["TextMock"]
