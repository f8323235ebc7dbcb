"""The unit of usage that kinds on tokenizers share."""

from __future__ import annotations

from attrs import frozen

from .events import Usage


@frozen(kw_only=True)
class TokenUsage(Usage):
    """What was counted by the model's own tokenizer.

    ``cached_tokens`` are those of the prompt that did not have to be computed again, ``reasoning_tokens``
    those of the answer that came as `ReasoningDelta`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Both together."""
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )

    @classmethod
    def of(cls, usage: Usage) -> TokenUsage:
        """The tokens of a usage; none where something else was counted."""
        return usage if isinstance(usage, cls) else cls()

    @property
    def total_tokens(self) -> int:
        """Those of the prompt and of the answer."""
        return self.prompt_tokens + self.completion_tokens


__all__ = ["TokenUsage"]
