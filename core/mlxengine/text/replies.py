"""The events of a whole text request gathered into one value."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from ..contract.events import Event, FinishReason, Metrics
from ..contract.tokens import TokenUsage
from ..handle import Result
from .outputs import ChoiceFinished, ReasoningDelta, TextDelta, TokenLogprob, ToolCall


@frozen(kw_only=True)
class TextReply:
    """The answer to a text request.

    Args:
        text: the answer, without the reasoning.
        reasoning: what the model thought before, where it is told apart.
        token_ids: the generated tokens, the end token included if one ended the answer.
        logprobs: one a token, if they were asked for.
        tool_calls: calls that the model made.
        finish_reason, usage, metrics: from `Finished`.
        choices: for a request with several answers, the replies by index (else empty).
    """

    text: str
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    usage: TokenUsage = TokenUsage()  # noqa: RUF009 - a frozen value
    metrics: Metrics = Metrics()  # noqa: RUF009
    mock: bool = False
    choices: tuple[TextReply, ...] = ()

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, events: Iterable[Event]) -> TextReply:
        """Gather a stream that ended with `Finished`."""
        result = Result.of(events)
        indices = sorted({event.index for event in result.events}) or [0]
        replies = tuple(cls._one(result, index) for index in indices)
        if len(replies) == 1:
            return replies[0]
        first = replies[0]
        return cls(
            **{name: getattr(first, name) for name in _SHARED},
            choices=replies,
        )

    @classmethod
    def _one(cls, result: Result, index: int) -> TextReply:
        mine = [event for event in result.events if event.index == index]
        deltas = [event for event in mine if isinstance(event, TextDelta)]
        thoughts = [event for event in mine if isinstance(event, ReasoningDelta)]
        spoken = [event for event in mine if isinstance(event, TextDelta | ReasoningDelta)]
        ends = [event for event in mine if isinstance(event, ChoiceFinished)]
        return cls(
            text="".join(event.text for event in deltas),
            reasoning="".join(event.text for event in thoughts),
            token_ids=tuple(token for event in spoken for token in event.token_ids),
            logprobs=tuple(entry for event in deltas for entry in event.logprobs),
            tool_calls=tuple(event for event in mine if isinstance(event, ToolCall)),
            finish_reason=ends[0].reason if ends else result.finished.reason,
            usage=TokenUsage.of(result.usage),
            metrics=result.metrics,
            mock=result.finished.mock,
        )


_SHARED = (
    "text",
    "reasoning",
    "token_ids",
    "logprobs",
    "tool_calls",
    "finish_reason",
    "usage",
    "metrics",
    "mock",
)

__all__ = ["TextReply"]
